"""Heat: which patches make a picture and a text fit, by the gradient of their score (ALBEF, arXiv 2107.07651, Sec. 6).

    heat = mean over heads and words of A · max(∂y/∂A, 0)

y: the log-odds of matching; A: the weights by which words attend to patches in one layer of the fusion. It is Grad-CAM
(Selvaraju et al. 2017, arXiv 1610.02391) with attention in the place of activations. The heat of a word is its own mean
over heads; that of the text is the mean over all its tokens, start and end among them. In the last layer the score
reads the start token alone, so that words have no heat of their own there.

A model without a matching head has heat of another kind (ALBEF's "itc"): y is the cosine in the contrastive space, A
the weights by which the class token attends to patches in one layer of the image encoder. Words have none.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from maskvlm_jax.data.tokenizer import Tokenizer
from maskvlm_jax.objectives.base import ScoresPairs, TrainsEmbeddings, objective_of
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime.errors import UserError


class Heat(NamedTuple):
    """Of each pair: y; the heat of the text, that of each token at each patch, row by row.

    score_B, text_BN, word_BLN; of cosines there are no words, L = 0.
    """

    score_B: Any
    text_BN: Any
    word_BLN: Any


class Layers(NamedTuple):
    """The layers that heat can be taken of: how many, and what their score y is, "log-odds of matching" or "cosine"."""

    count: int
    score: str

    @property
    def default(self) -> int:
        """The last but one, in which words have heat if any have; the only one, where there is but one."""
        return max(0, self.count - 2)

    def number(self, layer: int) -> int:
        """A layer counted from the first or, where negative, from the last, as a number from 0.

        Raises:
            UserError: there is none.
        """
        if not -self.count <= layer < self.count:
            raise UserError(
                f"there is no layer {layer}; give one from 0 to {self.count - 1}, or negative from the last"
            )
        return layer % self.count


def layers_of(config: ConfigDict, objectives: Mapping[str, type]) -> Layers:
    """The layers of a model.

    Raises:
        UserError: it has nothing that heat can be taken of.
    """
    model = config.model
    if objective_of(objectives, ScoresPairs) is not None:
        return Layers(model.fusion.depth, "log-odds of matching")
    reads_class = model.image.class_token and model.pooling.image != "mean"  # of the patches alone
    if objective_of(objectives, TrainsEmbeddings) is not None and reads_class and model.image.depth:
        return Layers(model.image.depth, "cosine")
    raise UserError(
        f"{config.name} has no heat over pictures: it needs a matching head, which configs/finetune_retrieval.py "
        "trains, or a contrastive space that reads the class token of an image encoder"
    )


@functools.cache
def heat_of(layer: int) -> Callable[[Learner, Mapping[str, jax.Array]], Heat]:
    """The compiled function of a layer, counted from 0: (learner, batch) -> `Heat`."""

    def heat(learner: Learner, batch: Mapping[str, jax.Array]) -> Heat:
        if learner.offering(ScoresPairs) is None:
            return _of_cosines(learner, batch, layer)
        return _of_matching(learner, batch, layer)

    return heat


def _of_matching(learner: Learner, batch: Mapping[str, jax.Array], layer: int) -> Heat:
    ctx, fusion, head = learner.context(batch), learner.vlm.fusion, learner.offering(ScoresPairs)
    image, text, valid_BL = ctx.image_side(), ctx.text_side(), batch["token_valid"]

    def score(added_BHLN: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        pair_BD, weights_BHLN = fusion.probed(image, text, layer, added_BHLN)
        score_B = head.log_odds(pair_BD)
        return jnp.sum(score_B), (score_B, weights_BHLN)

    rows, length = valid_BL.shape
    zeros = jnp.zeros((rows, fusion.heads, length, learner.vlm.image_encoder.patches), jnp.float32)
    gradient_BHLN, (score_B, weights_BHLN) = jax.grad(score, has_aux=True)(zeros)
    word_BLN = jnp.mean(weights_BHLN * jnp.maximum(gradient_BHLN, 0.0), axis=1)
    word_BLN = jnp.where(valid_BL[:, :, None], word_BLN, 0.0)
    text_BN = jnp.sum(word_BLN, axis=1) / jnp.sum(valid_BL, axis=1, keepdims=True)
    return Heat(score_B, text_BN, word_BLN)


def _of_cosines(learner: Learner, batch: Mapping[str, jax.Array], layer: int) -> Heat:
    vlm, ctx = learner.vlm, learner.context(batch)
    text_BE = ctx.text_embedding_BE

    def score(added_BHN: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        image_BSD, weights_BHN = vlm.image_encoder.probed(ctx.pixels_BYXC, layer, added_BHN)
        score_B = jnp.sum(vlm.embed_image(image_BSD) * text_BE, axis=1)
        return jnp.sum(score_B), (score_B, weights_BHN)

    zeros = jnp.zeros((len(text_BE), vlm.image_encoder.heads, vlm.image_encoder.patches), jnp.float32)
    gradient_BHN, (score_B, weights_BHN) = jax.grad(score, has_aux=True)(zeros)
    text_BN = jnp.mean(weights_BHN * jnp.maximum(gradient_BHN, 0.0), axis=1)
    return Heat(score_B, text_BN, text_BN[:, None][:, :0])


def of_words(tokenizer: Tokenizer, text: str, word_LN: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The words of a text, and the heat of each, (W, N): the mean of its tokens'. Words that were cut are left out, and
    all where tokens have no heat of their own, L = 0."""
    if not len(word_LN):
        return [], word_LN
    tokens, word_ids, _ = tokenizer.encode(text, len(word_LN))
    words = [np.flatnonzero(word_ids == word) for word in dict.fromkeys(word_ids.tolist()) if word >= 0]
    heat_WN = np.array([word_LN[places].mean(axis=0) for places in words]).reshape(-1, word_LN.shape[1])
    named = [tokenizer.decode(tokens[places]).strip() for places in words]
    unknown = ["".join(tokenizer.token(token) for token in tokens[places]) for places in words]
    return [name or token for name, token in zip(named, unknown, strict=True)], heat_WN


def grid(heat: np.ndarray) -> np.ndarray:
    """Heat of patches, (..., N), as the square that they are, (..., G, G)."""
    side = round(heat.shape[-1] ** 0.5)
    return heat.reshape(*heat.shape[:-1], side, side)


def resized(heat: np.ndarray, height: int, width: int) -> np.ndarray:
    """Heat of patches, (..., N), over a picture, (..., height, width) float32: bicubic, as torch's `interpolate`."""
    cells = grid(np.asarray(heat, np.float32))
    return _cubic(cells.shape[-1], height) @ cells @ _cubic(cells.shape[-1], width).T


@functools.lru_cache(maxsize=256)
def _cubic(count: int, length: int) -> np.ndarray:
    """(length, count): what each of `count` cells adds at the middle of each of `length` pixels; rows sum to 1.

    Keys' cubic (1981) with a = -0.75; beyond the borders stands the outermost cell.
    """
    place = (np.arange(length) + 0.5) * count / length - 0.5
    first, matrix = np.floor(place).astype(int), np.zeros((length, count))
    for cell in range(-1, 3):
        distance = np.abs(place - first - cell)
        near = 1.25 * distance**3 - 2.25 * distance**2 + 1
        far = -0.75 * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        share = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
        np.add.at(matrix, (np.arange(length), np.clip(first + cell, 0, count - 1)), share)
    return matrix.astype(np.float32)
