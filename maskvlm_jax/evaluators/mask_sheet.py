"""A sheet of masks that a masker chooses, with the evaluated model itself as the teacher: what is hidden, how often."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskvlm_jax.data.evaluation_set import EvaluationSet
from maskvlm_jax.data.tokenizer import Tokenizer
from maskvlm_jax.evaluators.predictor import Predictor
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.objectives.maskers.base import Masks
from maskvlm_jax.runtime import sheets
from maskvlm_jax.runtime.sheets import INK, PALE, PAPER

DRAWS = 64  # that shares are taken over
TILE, GAP, HEADER, LINE, GREY = 160, 10, 24, 20, 128
WIDTH = 440  # of the words
_WARM = np.array([255.0, 150.0, 20.0])


class Chosen(NamedTuple):
    """Of each example the masks of one draw, and the share of the draws that hide a position."""

    image_masked_BN: jax.Array
    text_masked_BL: jax.Array
    image_share_BN: jax.Array
    text_share_BL: jax.Array


def chosen(learner: Learner, batch: Mapping[str, jax.Array]) -> Chosen:
    """What the masker of a model chooses; a modality that it leaves alone is masked as the host did."""
    teacher = learner.context(batch)

    def once(key: jax.Array) -> Masks:
        image_BN, text_BL = learner.masker(teacher, key)
        return Masks(
            batch["image_masked"] if image_BN is None else image_BN,
            batch["text_masked"] if text_BL is None else text_BL,
        )

    drawn = jax.vmap(once)(jax.random.split(jax.random.key(0), DRAWS))
    return Chosen(*(x[0] for x in drawn), *(jnp.mean(x, axis=0, dtype=jnp.float32) for x in drawn))


def sheet(
    predictor: Predictor, data: EvaluationSet, tokenizer: Tokenizer, *, count: int, batch_size: int
) -> np.ndarray:
    """(Y, X, 3) uint8, one row a picture with its first caption: the picture, how often each patch is hidden, one draw,
    how often each word is, and that draw of the words. No share is white or the picture in grey, all is orange."""
    pictures = np.arange(min(count, len(data.images)))
    filled = np.concatenate([pictures, np.zeros(batch_size - len(pictures), int)])
    texts = data.first_captions[filled]
    found = predictor.fetch(chosen, data.batch(filled, texts, np.arange(batch_size) < len(pictures)))
    page = Image.new("RGB", (GAP + 3 * (TILE + GAP) + WIDTH, HEADER + len(pictures) * (TILE + GAP)), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    for column, title in enumerate(("picture", "share of the draws", "one draw", "words: share, and that draw")):
        draw.text((GAP + column * (TILE + GAP), 4), title, INK, font)
    for i in pictures:
        top, left = HEADER + i * (TILE + GAP), GAP + 3 * (TILE + GAP)
        pixels = data.images[i]
        share, hidden = (_over(pixels, x[i]) for x in (found.image_share_BN, found.image_masked_BN))
        tiles = (pixels, _tinted(pixels, share), np.where(hidden, GREY, pixels).astype(np.uint8))
        for column, tile in enumerate(tiles):
            large = Image.fromarray(tile).resize((TILE, TILE), Image.Resampling.NEAREST)
            page.paste(large, (GAP + column * (TILE + GAP), top))
        tokens_L, length = data.text["tokens"][texts[i]], int(data.text["token_valid"][texts[i]].sum())
        words = [tokenizer.token(token) for token in tokens_L[1 : length - 1]]
        shares, masked = (x[i, 1 : length - 1] for x in (found.text_share_BL, found.text_masked_BL))
        coloured = [sheets.Word(word, INK, _colour(share)) for word, share in zip(words, shares, strict=True)]
        seen = [
            sheets.Word("_" * len(word), PALE) if gone else sheets.Word(word)
            for word, gone in zip(words, masked, strict=True)
        ]
        middle = top + TILE // 2
        sheets.draw_words(draw, coloured, (left, top, page.width - GAP, middle - LINE), font, line=LINE)
        sheets.draw_words(draw, seen, (left, middle, page.width - GAP, top + TILE - LINE), font, line=LINE)
    return np.asarray(page)


def _over(pixels: np.ndarray, value_N: np.ndarray) -> np.ndarray:
    """(Y, X, 1): a value of each patch, row by row, at each of its pixels."""
    side = round(len(value_N) ** 0.5)
    patch = pixels.shape[0] // side
    return np.kron(value_N.reshape(side, side), np.ones((patch, patch), value_N.dtype))[..., None]


def _tinted(pixels: np.ndarray, share: np.ndarray) -> np.ndarray:
    """The picture in dark grey, orange where the share is large."""
    grey = 0.5 * pixels.mean(axis=2, keepdims=True)
    return np.rint(grey + 0.8 * share * (_WARM - grey)).astype(np.uint8)


def _colour(share: float) -> tuple[int, int, int]:
    return tuple(np.rint(255 + share * (_WARM - 255)).astype(int).tolist())
