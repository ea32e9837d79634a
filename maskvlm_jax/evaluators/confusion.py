"""Which classes are taken for which, as a sheet: a row a right class, a column a told one."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskvlm_jax.runtime.sheets import INK, PALE, PAPER

MOST = 1_000  # classes that are drawn
_NAMED = 40  # classes whose names and counts are written
_CELL, _SIDE, _GAP = 34, 900, 12  # pixels of a cell with its count, of a sheet without
_RIGHT, _WRONG = np.array((0, 120, 50)), np.array((190, 30, 30))


def counts(label_I: np.ndarray, told_I: np.ndarray, classes: int) -> np.ndarray:
    """count_CC: examples of the class of a row that are told to be of the class of a column."""
    return np.bincount(label_I * classes + told_I, minlength=classes**2).reshape(classes, classes)


def sheet(label_I: np.ndarray, told_I: np.ndarray, names: Sequence[str] = ()) -> np.ndarray | None:
    """(Y, X, 3) uint8: counts, the darker the larger their share of the row, what is right green; None where there are
    too many classes to see anything.

    Args:
        label_I, told_I: numbers of the right classes and of the told ones.
        names: in the order of the numbers; () = the numbers.
    """
    classes = max(len(names), int(max(label_I.max(), told_I.max())) + 1)
    if classes > MOST:
        return None
    names = [names[number] if number < len(names) else str(number) for number in range(classes)]
    count_CC = counts(label_I, told_I, classes)
    paint = _named if classes <= _NAMED else _plain
    return np.asarray(paint(count_CC, _colours(count_CC), names))


def _colours(count_CC: np.ndarray) -> np.ndarray:
    """(C, C, 3) uint8: white where there is nothing, else by the share of the row."""
    share_CC1 = (count_CC / np.maximum(count_CC.sum(axis=1, keepdims=True), 1))[..., None]
    ink_CC3 = np.where(np.eye(len(count_CC), dtype=bool)[..., None], _RIGHT, _WRONG)
    weight_CC1 = np.where(share_CC1 > 0, 0.12 + 0.88 * share_CC1, 0)
    return np.round(255 - weight_CC1 * (255 - ink_CC3)).astype(np.uint8)


def _named(count_CC: np.ndarray, colour_CC3: np.ndarray, names: Sequence[str]) -> Image.Image:
    font, small = ImageFont.load_default(14), ImageFont.load_default(11)
    length = max(int(font.getlength(name)) for name in names)
    left, top, side = length + 2 * _GAP, length + 3 * _GAP + 16, _CELL * len(names)
    picture = Image.new("RGB", (left + side + _GAP, top + side + _GAP), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_GAP, _GAP), "rows: right, columns: told", PALE, font)
    for number, name in enumerate(names):
        middle = number * _CELL + _CELL // 2
        draw.text((left - _GAP // 2, top + middle), name, INK, font, anchor="rm")
        turned = Image.new("RGB", (length + 2, 20), PAPER)
        ImageDraw.Draw(turned).text((0, 10), name, INK, font, anchor="lm")
        turned = turned.rotate(90, expand=True)
        picture.paste(turned, (left + middle - 10, top - turned.height - _GAP // 2))
    for (row, column), count in np.ndenumerate(count_CC):
        x, y = left + column * _CELL, top + row * _CELL
        draw.rectangle((x, y, x + _CELL - 2, y + _CELL - 2), tuple(colour_CC3[row, column].tolist()), (225, 225, 225))
        if count:
            ink = PAPER if colour_CC3[row, column].mean() < 128 else INK
            draw.text((x + _CELL // 2 - 1, y + _CELL // 2 - 1), str(count), ink, small, anchor="mm")
    return picture


def _plain(count_CC: np.ndarray, colour_CC3: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Without names, but for those of the most frequent mistakes."""
    cell, font = max(1, _SIDE // len(names)), ImageFont.load_default(14)
    side = cell * len(names)
    wrong_CC = np.where(np.eye(len(names), dtype=bool), 0, count_CC)
    often = [place for place in np.argsort(-wrong_CC, axis=None, kind="stable")[:10] if wrong_CC.flat[place]]
    lines = [f"{len(names)} classes; rows: right, columns: told", *(["most often mistaken:"] if often else [])]
    for place in often:
        row, column = divmod(int(place), len(names))
        lines.append(f"{wrong_CC[row, column]} x {names[row]} told as {names[column]}")
    height = side + 3 * _GAP + 20 * len(lines)
    width = max(side, *(int(font.getlength(line)) for line in lines)) + 2 * _GAP
    picture = Image.new("RGB", (width, height), PAPER)
    drawn = Image.fromarray(colour_CC3).resize((side, side), Image.Resampling.NEAREST)
    picture.paste(drawn, (_GAP, _GAP))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((_GAP - 1, _GAP - 1, _GAP + side, _GAP + side), outline=PALE)
    for number, line in enumerate(lines):
        draw.text((_GAP, side + 2 * _GAP + 20 * number), line, INK, font)
    return picture
