"""Pictures and captions through a compiled function, in batches of one shape, padded where there are fewer."""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from maskvlm_jax.data import batch as batches_of
from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.data.evaluation_set import padded
from maskvlm_jax.data.tokenizer import Tokenizer
from maskvlm_jax.evaluators.predictor import Predictor
from maskvlm_jax.serving import pictures
from maskvlm_jax.serving.pictures import OnError, Picture

Arrays = dict[str, np.ndarray]


class Runner:
    """A model's functions over what people have.

    Args:
        predictor: of the model; mesh: that it is on.
        tokenizer: of the model.
        image_size, patches, max_length: what it reads.
        batch_size: pictures, captions or pairs at once, at least.
    """

    def __init__(
        self,
        predictor: Predictor,
        mesh: Mesh,
        tokenizer: Tokenizer,
        *,
        image_size: int,
        patches: int,
        max_length: int,
        batch_size: int,
    ):
        self._predictor, self._mesh, self.tokenizer = predictor, mesh, tokenizer
        self._image_size, self._patches, self._max_length = image_size, patches, max_length
        self._batch_size = predictor.pair_batch(batch_size)

    def fetch(self, function: Callable, batch: Arrays, *more: Any) -> Any:
        """function(learner, batch, *more), compiled, as NumPy arrays."""
        with jax.set_mesh(self._mesh):
            return self._predictor.fetch(function, batch, *more)

    def of_images(
        self,
        images: Picture | Iterable[Picture],
        function: Callable,
        shape: tuple[int, ...],
        *,
        progress: bool = False,
        on_error: OnError = "raise",
    ) -> np.ndarray:
        """A row for each picture, float32; of a broken one that is skipped NaN.

        Args:
            shape: of a row.
        """
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {on_error!r}; give 'raise' or 'skip'")
        given, single = pictures.many(images)
        rows, size = np.full((len(given), *shape), np.nan, np.float32), self._batch_size
        with _bar(len(given), progress) as bar:
            for pixels, ids in pictures.batches(given, self._image_size, size, on_error):
                chosen, valid = padded(np.arange(len(pixels)), size)
                rows[ids] = self.fetch(function, {"image": pixels[chosen]})[valid]
                bar.update(len(ids))
        return rows[0] if single else rows

    def of_texts(
        self, texts: str | Iterable[str], function: Callable, shape: tuple[int, ...], *, progress: bool = False
    ) -> np.ndarray:
        """A row for each text, float32."""
        given, single = many_texts(texts)
        rows, arrays, size = np.zeros((len(given), *shape), np.float32), self.tokens(given), self._batch_size
        with _bar(len(given), progress) as bar:
            for start in range(0, len(given), size):
                chosen, valid = padded(np.arange(start, min(start + size, len(given))), size)
                rows[chosen[valid]] = self.fetch(function, {name: x[chosen] for name, x in arrays.items()})[valid]
                bar.update(int(valid.sum()))
        return rows[0] if single else rows

    def of_pairs(
        self,
        images: Picture | Iterable[Picture],
        texts: str | Iterable[str],
        function: Callable,
        *more: Any,
        shape: tuple[int, ...] = (),
        second_images: Mapping[str, Picture | Iterable[Picture]] | None = None,
        second_texts: Mapping[str, str | Iterable[str]] | None = None,
        progress: bool = False,
    ) -> tuple[np.ndarray, bool]:
        """A row for each pair, float32, and whether one of each was given.

        Args:
            function: of (learner, batch, *more).
            shape: of a row.
            second_images, second_texts: of each pair, by the field that holds them, of which there is one.
        Raises:
            ValueError: neither as many of each nor one.
        """
        given = {"images": pictures.many(images), "texts": many_texts(texts)}
        for one in (second_images or {}).values():
            given["second_images"] = pictures.many(one)
        for one in (second_texts or {}).values():
            given["second_texts"] = many_texts(one)
        counts = {name: len(many) for name, (many, single) in given.items() if not single}
        if len(set(counts.values())) > 1:
            told = " and ".join(f"{number} {name}" for name, number in counts.items())
            raise ValueError(f"there are {told}; give as many of each, or one")
        count = next(iter(counts.values()), 1)
        repeated = {name: many * count if single else many for name, (many, single) in given.items()}
        read = {"image": repeated["images"]} | dict.fromkeys(second_images or {}, repeated.get("second_images"))
        one_text = given["texts"][1]
        arrays = self.tokens(given["texts"][0])
        arrays = {name: np.repeat(x, count, axis=0) if one_text else x for name, x in arrays.items()}
        for name in second_texts or {}:
            tokens = self.tokens(repeated["second_texts"])
            arrays |= {f"{name}_tokens": tokens["tokens"], f"{name}_valid": tokens["token_valid"]}
        with _bar(count, progress) as bar:
            found = self._of_rows(read, arrays, function, bar, *more, shape=shape)
        return found, not counts

    def beside(self, image: Picture, arrays: Arrays, function: Callable) -> np.ndarray:
        """A number for each row of "tokens" and "token_valid" beside one picture."""
        count = len(arrays["tokens"])
        with _bar(count, False) as bar:
            return self._of_rows({"image": [image] * count}, arrays, function, bar)

    def _of_rows(
        self,
        read: Mapping[str, list[Picture]],
        arrays: Arrays,
        function: Callable,
        bar: tqdm,
        *more: Any,
        shape: tuple[int, ...] = (),
    ) -> np.ndarray:
        """A row for each row of tokens and the pictures of its number."""
        found = np.zeros((len(arrays["tokens"]), *shape), np.float32)
        batches = zip(*(self._read(many) for many in read.values()), strict=True)
        for images in batches:
            ids = images[0][1]
            chosen, valid = padded(np.arange(len(ids)), self._batch_size)
            batch = {name: image[chosen] for name, (image, _) in zip(read, images, strict=True)}
            batch |= {name: x[ids][chosen] for name, x in arrays.items()}
            batch["image_masked"] = np.zeros((len(chosen), self._patches), bool)
            found[ids] = self.fetch(function, batch, *more)[valid]
            bar.update(len(ids))
        return found

    def _read(self, many: list[Picture]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of pictures and their numbers; one that stands beside every text is read once."""
        if not many or any(one is not many[0] for one in many):
            yield from pictures.batches(many, self._image_size, self._batch_size, "raise")
            return
        pixels = self.picture(many[0])
        for start in range(0, len(many), self._batch_size):
            ids = np.arange(start, min(start + self._batch_size, len(many)))
            yield np.repeat(pixels[None], len(ids), axis=0), ids

    def picture(self, image: Picture | None) -> np.ndarray:
        """(Y, X, 3) uint8; None = the mean colour, which tells nothing."""
        if image is None:
            return batches_of.without_picture(np.zeros((self._image_size, self._image_size, 3), np.uint8))
        return pictures.read(image, self._image_size)

    def tokens(self, texts: Sequence[str]) -> Arrays:
        """ "tokens" and "token_valid", (n, L); warns where a text is cut."""
        shape = len(texts), self._max_length
        arrays, cut = {"tokens": np.zeros(shape, np.int32), "token_valid": np.zeros(shape, bool)}, 0
        for i, text in enumerate(texts):
            # One token longer, to see whether anything is left out.
            cut += bool(self.tokenizer.encode(text, self._max_length + 1)[2][-1])
            arrays["tokens"][i], _, arrays["token_valid"][i] = self.tokenizer.encode(text, self._max_length)
        if cut:
            warnings.warn(
                f"{cut} of {len(texts)} texts have more than {self._max_length} tokens and are cut", stacklevel=4
            )
        return arrays

    def masked_tokens(self, text: str, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens (L,) with the mask token in the place of each [MASK], which they are, and which are no padding.

        Raises:
            ValueError: no [MASK] or more than `most`, or a text that is too long.
        """
        many_texts(text)
        own = self.tokenizer.token(self.tokenizer.mask_id)
        parts = text.replace(own, tokenizers.MASK).split(tokenizers.MASK)
        ids: list[int] = []
        for i, part in enumerate(parts):
            if i:
                ids.append(self.tokenizer.mask_id)
            # A space before a mask is part of it: by itself it would be a token where spaces are.
            part = part.rstrip() if i < len(parts) - 1 else part
            tokens, _, valid = self.tokenizer.encode(part, self._max_length + 2)
            ids += tokens[valid][1:-1].tolist()
        if not 1 <= len(parts) - 1 <= most:
            raise ValueError(f"the text has {len(parts) - 1} {tokenizers.MASK}; this model fills 1 to {most}")
        if len(ids) > self._max_length - 2:
            raise ValueError(f"the text has too many tokens; this model reads {self._max_length - 2}")
        tokens = np.full(self._max_length, self.tokenizer.pad_id, np.int32)
        tokens[: len(ids) + 2] = [self.tokenizer.start_id, *ids, self.tokenizer.end_id]
        return tokens, tokens == self.tokenizer.mask_id, np.arange(self._max_length) < len(ids) + 2

    def of_one(
        self,
        function: Callable,
        pixels: np.ndarray,
        tokens: np.ndarray,
        valid: np.ndarray,
        *,
        image_masked: np.ndarray | None = None,
        text_masked: np.ndarray | None = None,
    ) -> Any:
        """function(learner, batch) of one example, which is repeated so that every device has a share."""
        nothing = np.zeros(self._patches, bool), np.zeros(self._max_length, bool)
        arrays = {
            "image": pixels,
            "tokens": tokens,
            "tokens_masked": tokens,
            "token_valid": valid,
            "image_masked": nothing[0] if image_masked is None else image_masked,
            "text_masked": nothing[1] if text_masked is None else text_masked,
            "pair_id": np.zeros(2, np.int32),
            "example_valid": np.bool_(True),
        }
        rows = self._predictor.pair_batch(1)
        return self.fetch(function, {name: np.repeat(np.asarray(x)[None], rows, axis=0) for name, x in arrays.items()})


def many_texts(texts: str | Iterable[str]) -> tuple[list[str], bool]:
    """The texts as a list, and whether a single one was given."""
    given, single = ([texts], True) if isinstance(texts, str) else (list(texts), False)
    for text in given:
        if not isinstance(text, str):
            raise TypeError(f"{type(text).__name__} is no text{'; a path is a picture' * isinstance(text, Path)}")
    return given, single


def _bar(total: int, shown: bool) -> contextlib.AbstractContextManager[tqdm]:
    return tqdm(total=total, disable=not shown, leave=False)
