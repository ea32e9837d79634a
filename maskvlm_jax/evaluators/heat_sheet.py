"""A sheet of heat over pictures: one row an example, the picture, the heat of its text, that of each word."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskvlm_jax.evaluators import heat as heats
from maskvlm_jax.runtime.sheets import INK, PALE, PAPER

TILE, GAP, LINE = 120, 8, 20
MOST_WORDS = 10  # of a text that are drawn
_BOX = (255, 255, 255)


class Shown(NamedTuple):
    """What is drawn of an example: pixels (Y, X, 3) uint8; its text and words; the heat of the text (N,) and of each
    word (W, N); the box, (x0, y0, x1, y1) as shares of the picture, that is meant."""

    pixels: np.ndarray
    text: str
    words: Sequence[str]
    text_N: np.ndarray
    word_WN: np.ndarray
    box: np.ndarray


def sheet(rows: Sequence[Shown]) -> np.ndarray:
    """(Y, X, 3) uint8. Each tile's heat is brighter the hotter, of its own warmest place."""
    columns = 2 + max(min(len(row.words), MOST_WORDS) for row in rows)
    height = TILE + 2 * LINE + GAP
    page = Image.new("RGB", (GAP + columns * (TILE + GAP), GAP + len(rows) * height), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for i, row in enumerate(rows):
        top = GAP + i * height
        draw.text((GAP, top), row.text, INK, font)
        tiles = [("", None), ("all words", row.text_N), *zip(row.words[:MOST_WORDS], row.word_WN, strict=False)]
        for column, (title, heat_N) in enumerate(tiles):
            left = GAP + column * (TILE + GAP)
            page.paste(_tile(row.pixels, heat_N, row.box), (left, top + LINE))
            draw.text((left, top + LINE + TILE), title, PALE, font)
    return np.asarray(page)


def over(pixels: np.ndarray, heat_N: np.ndarray) -> np.ndarray:
    """(Y, X, 3) uint8: the picture dimmed, lit up where the heat is, from dark red to yellow."""
    warm = np.maximum(heats.resized(heat_N, *pixels.shape[:2]), 0)
    warm = (warm / max(float(warm.max()), 1e-30))[..., None]
    grey = pixels.mean(axis=2, keepdims=True) * 0.45
    colour = np.concatenate([np.full_like(warm, 255), 235 * warm, 40 * warm], axis=2)
    return np.rint(grey * (1 - warm) + colour * warm).astype(np.uint8)


def _tile(pixels: np.ndarray, heat_N: np.ndarray | None, box: np.ndarray) -> Image.Image:
    large = np.asarray(Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.BICUBIC))
    tile = Image.fromarray(large if heat_N is None else over(large, heat_N))
    ImageDraw.Draw(tile).rectangle(tuple((box * (TILE - 1)).tolist()), outline=_BOX)
    return tile
