"""Sheets: pictures and words drawn side by side."""

import io
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

INK, PALE, PAPER = (20, 20, 20), (130, 130, 130), (255, 255, 255)


class Word(NamedTuple):
    """A word to be drawn: its colour, and that of the box behind it, None = no box."""

    text: str
    ink: tuple[int, int, int] = INK
    mark: tuple[int, int, int] | None = None


def draw_words(
    draw: ImageDraw.ImageDraw, words: Iterable[Word], box: tuple[int, int, int, int], font, *, line: int
) -> None:
    """Draws words into the box (left, top, right, bottom), in lines of `line` pixels; "..." ends what is cut."""
    left, y, right, bottom = box
    x, space = left, draw.textlength(" ", font) + 3
    for word in words:
        length = draw.textlength(word.text, font)
        if x > left and x + length > right:
            x, y = left, y + line
        if y > bottom:
            draw.text((x, y), "...", PALE, font)
            return
        if word.mark:
            draw.rectangle((x - 2, y, x + length + 2, y + line - 2), word.mark)
        draw.text((x, y), word.text, word.ink, font)
        x += length + space


def png(sheet: np.ndarray) -> bytes:
    """A picture, (Y, X, 3) uint8, as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(sheet).save(content, "PNG")
    return content.getvalue()
