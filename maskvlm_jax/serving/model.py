"""A trained model in Python: pictures and captions in, NumPy out.

model = maskvlm_jax.load("runs/maskvlm-tiny-scenes")
images, texts = model.encode_images(["a.jpg", "b.png"]), model.encode_texts(["a red square"])
model.similarity(texts, images)
"""

import functools
import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from scipy.special import softmax

from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.evaluators import prompts
from maskvlm_jax.evaluators.predictor import Functions, Predictor
from maskvlm_jax.objectives.base import PredictsPixels, PredictsWords, ScoresPairs, TrainsEmbeddings, label_of
from maskvlm_jax.objectives.matching import probability
from maskvlm_jax.runtime import buckets, sharding
from maskvlm_jax.serving import explaining, features, functions, naming, ranking, rebuilding, telling, words
from maskvlm_jax.serving.pictures import OnError, Picture
from maskvlm_jax.serving.runner import Arrays, Runner
from maskvlm_jax.settings import rules
from maskvlm_jax.training import stored_model, train_step


def load(
    folder: str | os.PathLike, *, step: str = "latest", weights: str = "params", dtype: str = "", batch_size: int = 64
) -> "Model":
    """The model of a run's workdir or of an export, on jax's default devices.

    Args:
        folder: of either.
        step: of a workdir: "latest", "best" or a number.
        weights: "params" or "ema", their moving average.
        dtype: of products and activations, "float32" or "bfloat16"; "" = as it was trained: bfloat16 on TPU and GPU.
        batch_size: pictures, captions or pairs that are computed at once; what is given to one call has no limit.

    Raises:
        UserError: there is no such model, or it cannot be read.
    """
    return Model(os.fspath(folder), step=str(step), weights=weights, dtype=dtype, batch_size=batch_size)


class Model(telling.Tells):
    """A trained model; made by `load`.

    Pictures are paths, encoded bytes, Pillow images or uint8 arrays (Y, X, 3), one or a list of mixed kinds. One
    picture or one text gives one row, without the axis of a list; an empty list gives no rows. Order is kept. What
    cannot be asked of this model (it was trained without that objective) raises ValueError, a broken picture
    `PictureError`, a ValueError that names it.

    Attributes:
        config: of the run, an `ml_collections.ConfigDict`.
        step: of the run; checkpoint: what `load` finds the same parameters by, "best" or the step.
        tokenizer: see `data.tokenizer.Tokenizer`. image_size: pixels of the square that pictures are squeezed to.
        max_length: tokens of a caption, those of start and end among them; what is longer is cut.
        embed_dim: E of the contrastive space; 0 = there is none.
    """

    def __init__(self, folder: str, *, step: str, weights: str, dtype: str, batch_size: int):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; give at least 1")
        self._folder = buckets.folder(folder)
        self._mesh = sharding.make_mesh(data=-1, fsdp=1, model=1)
        with jax.set_mesh(self._mesh):
            found = stored_model.read(self._folder, self._mesh, step=step, weights=weights, dtype=dtype)
        self.config, self.step, self._weights = found.config, found.step, weights
        # The best checkpoint has a folder of its own; the latest may be another by the time that it is saved.
        self.checkpoint = step if step == "best" else str(found.step)
        self._params = found.params
        self.tokenizer = tokenizers.load(self._folder / "tokenizer")
        self._objectives = rules.active_objectives(self.config)
        self._predictor = Predictor(
            Functions(found.graphdef), found.params, objectives=self._objectives, mesh=self._mesh
        )
        image, text = self.config.model.image, self.config.model.text
        self.image_size, self.max_length, self.embed_dim = image.image_size, text.max_length, self.config.model.embed
        self._patch, self._grid = image.patch, image.image_size // image.patch
        self._runner = Runner(
            self._predictor,
            self._mesh,
            self.tokenizer,
            image_size=self.image_size,
            patches=self._grid**2,
            max_length=self.max_length,
            batch_size=batch_size,
        )

    @functools.cached_property
    def parameters_sha256(self) -> str:
        """sha256 of the parameters, as in result.json."""
        with jax.set_mesh(self._mesh):
            return train_step.parameters_sha256(self._params)

    @property
    def matches(self) -> bool:
        """Whether there is a matching head, for `match` and the second stage of `rank`."""
        return self._predictor.offers(ScoresPairs)

    @property
    def temperature(self) -> float:
        """τ of the contrastive loss; similarities are not divided by it."""
        self._needs(TrainsEmbeddings, "contrastive space")
        with jax.set_mesh(self._mesh):
            return self._predictor.temperature()

    def encode_images(
        self,
        images: Picture | Iterable[Picture],
        *,
        normalize: bool = True,
        progress: bool = False,
        on_error: OnError = "raise",
    ) -> np.ndarray:
        """Pictures in the contrastive space.

        Args:
            normalize: make each of unit length, so that products are cosines.
            progress: show a bar.
            on_error: "raise", or "skip": the row of a broken picture is NaN, and a warning names it.
        Returns:
            (n, E) float32, (E,) of one picture.
        """
        self._needs(TrainsEmbeddings, "contrastive space")
        function = functions.unit_image_vectors if normalize else functions.image_vectors
        return self._runner.of_images(images, function, (self.embed_dim,), progress=progress, on_error=on_error)

    def encode_texts(self, texts: str | Iterable[str], *, normalize: bool = True, progress: bool = False) -> np.ndarray:
        """Captions in the contrastive space, (n, E) float32, (E,) of one; arguments as of `encode_images`."""
        self._needs(TrainsEmbeddings, "contrastive space")
        function = functions.unit_text_vectors if normalize else functions.text_vectors
        return self._runner.of_texts(texts, function, (self.embed_dim,), progress=progress)

    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """(n, m) cosines of the rows of two arrays that `encode_images` or `encode_texts` made."""
        a, b = (np.atleast_2d(np.asarray(x, np.float32)) for x in (a, b))
        a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b))
        return a @ b.T

    def features(
        self,
        images: Picture | Iterable[Picture] | None = None,
        texts: str | Iterable[str] | None = None,
        pooling: str = "none",
    ) -> Arrays:
        """What the encoders make of pictures and captions, before any projection.

        Returns:
            "image" (n, S, D), the class token and other tokens before the patches, or (n, D) by `pooling` "first" or
            "mean", of the patches; "text" (n, L, D) and "text_valid" (n, L), False at padding; of what was given. One
            picture or text has no axis n.
        """
        return features.of(self._runner, self.config, images, texts, pooling)

    def match(
        self, images: Picture | Iterable[Picture], texts: str | Iterable[str], *, progress: bool = False
    ) -> np.ndarray:
        """The probability that picture i and text i belong together, before which matched and unmatched are as likely.

        The head's log-odds are of one matched pair among two unmatched ones that were hard to tell; what is given here
        is corrected for their number, not for how hard they were. Among candidates that look right, as the nearest by
        cosine do, it is a probability. Between pictures and captions at random it is cautious: of the pairs of test
        scenes that the README's run gives 0.1 to 0.9 there, all belong together. `evaluators.calibration` shows a
        run's own.

        Args:
            images, texts: as many of both, or one of either.
        Returns:
            (n,) float32; a scalar of one picture and one text.
        """
        self._needs(ScoresPairs, "matching head")
        odds, single = self._runner.of_pairs(images, texts, functions.log_odds, progress=progress)
        return probability(odds)[0] if single else probability(odds)

    def rank(
        self, query: Picture | str, candidates: Sequence[Any], *, k: int = 10, rerank: int = 64
    ) -> list[dict[str, Any]]:
        """The candidates that fit a query best: first by cosine, then the nearest by matching too.

        Args:
            query: a text, whose candidates are pictures; or a picture, whose candidates are texts. A path is given as
                a `Path`, since a string is a text.
            k: how many are wanted.
            rerank: how many are matched with the query, at least the k that are wanted; 0 = none.
        Returns:
            at most k of {"index": of the candidates, "score": cosine, "match": probability, None where it was not
            computed}, the best first.
        """
        return ranking.rank(self, query, candidates, k=k, rerank=rerank)

    def rerank(
        self, query: Picture | str, candidates: Sequence[Any], cosines: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The second stage of `rank`, of candidates whose cosines with the query are known.

        Returns:
            (n,) scores, the higher the better: log-odds of matching, and the cosine over the temperature where matching
            was trained to be added to it; (n,) probabilities, as of `match`.
        """
        self._needs(ScoresPairs, "matching head")
        pair = (candidates, query) if isinstance(query, str) else (query, candidates)
        odds, _ = self._runner.of_pairs(*pair, functions.log_odds)
        label = label_of(self._objectives, ScoresPairs)
        adds = self._objectives[label].adds_similarity(self.config.objectives[label])
        return odds + (cosines / self.temperature if adds else 0), probability(odds)

    def word_weights(self, image: Picture, text: str) -> list[tuple[str, float]]:
        """What each word of a text adds to the probability of matching a picture, or to the cosine without that head.

        Returns:
            of each word how much that falls where the mask token stands in the word's place.
        Raises:
            ValueError: the text is empty or longer than the model reads.
        """
        if self.matches:
            return words.weights(self._runner, image, text, functions.log_odds, probability)
        self._needs(TrainsEmbeddings, "contrastive space")
        return words.weights(self._runner, image, text, functions.cosines, lambda cosines: cosines)

    def explain(self, image: Picture, text: str, *, layer: int | None = None) -> dict[str, Any]:
        """Which parts of a picture make it fit a text, and which word looks where; `evaluators.heat` says how.

        Args:
            layer: of the fusion (without a matching head, of the image encoder), from 0 or from the last, -1; None: the
                last but one. In the last of them words have no heat of their own.
        Returns:
            "score": log-odds of matching, or the cosine; "words", W of them (0 of a cosine); "grid" (G, G) and
            "word_grid" (W, G, G), heat of the patches; "heat" (Y, X) and "word_heat" (W, Y, X), the same over the
            square that the picture is squeezed to. float32.
        """
        return explaining.explain(self._runner, self.config, self._objectives, image, text, layer)

    def classify(
        self,
        images: Picture | Iterable[Picture],
        labels: Sequence[str],
        *,
        templates: Sequence[str] = ("a photo of a {}.",),
        progress: bool = False,
    ) -> np.ndarray:
        """Probabilities of classes that are known by their names alone.

        Args:
            templates: {} stands for the name; the vectors of all of them are averaged, or the log-odds of matching
                where there is no contrastive space.
        Returns:
            (n, c) float32, (c,) of one picture; rows sum to 1.
        """
        texts = naming.checked_prompts(labels, templates)
        if self.matches and not self._predictor.offers(TrainsEmbeddings):
            return softmax(naming.matched(self._runner, images, texts, len(labels), progress=progress), axis=-1)
        vectors = prompts.class_vectors(self.encode_texts(texts), len(labels))
        return softmax(self.encode_images(images, progress=progress) @ vectors.T / self.temperature, axis=-1)

    def fill_masks(self, image: Picture | None, text: str, *, k: int = 5) -> list[list[dict[str, Any]]]:
        """The likeliest tokens in the place of every [MASK] of a text, given the picture.

        Args:
            image: None = a picture of the mean colour, which tells nothing.
            text: with [MASK] or the tokenizer's own mask token, at most as often as training hides words.
        Returns:
            of each place k of {"word", "probability"}, the likeliest first.
        """
        self._needs(PredictsWords, "head of masked words")
        label = label_of(self._objectives, PredictsWords)
        return rebuilding.fill_masks(self._runner, self.config, self.config.objectives[label], image, text, k)

    def reconstruct(self, image: Picture, text: str, *, seed: int = 0) -> Arrays:
        """A picture whose hidden patches are rebuilt from the visible ones and a text.

        Args:
            seed: draws which patches are hidden, as many as in training.
        Returns:
            "image" and "masked" (Y, X, 3) uint8: rebuilt, and with grey in the place of what was hidden; "hidden" (N,)
            bool, patches row by row.
        """
        self._needs(PredictsPixels, "head of masked pictures")
        return rebuilding.reconstruct(self._runner, self.config, image, text, seed)

    def save(self, folder: str | os.PathLike, *, stablehlo: bool = False) -> None:
        """Writes the model as an export, see `python -m maskvlm_jax.export`.

        Raises:
            UserError: the folder exists or cannot be written.
        """
        from maskvlm_jax.serving.exports import exporting  # reads the model anew, as it is stored

        exporting.export(
            str(self._folder), os.fspath(folder), step=self.checkpoint, weights=self._weights, stablehlo=stablehlo
        )

    def _needs(self, role: type, what: str) -> None:
        if not self._predictor.offers(role):
            raise ValueError(f"{self.config.name} has no {what}: it was trained without")
