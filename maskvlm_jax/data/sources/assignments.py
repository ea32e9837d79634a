"""Data source `assignments`: to which of two pictures does a caption belong, if to any?

The text assignment of ALBEF (Li et al. 2021, arXiv 2107.07651), a step between pre-training and NLVR2, made of any
captioned set: `data.of` is the kind of source that reads it. An example has one caption of a picture of that set,
"image" and "image2", and "label", one of `LABELS`: the caption's own picture is the first or the second, the others are
drawn from the same split. What is drawn is a function of the split's name and of the example's number; a picture of
which the same caption is told is not taken for another.
"""

import hashlib
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskvlm_jax.data.scenes.world import Dice
from maskvlm_jax.data.sources import opening
from maskvlm_jax.data.sources.base import Source, facts_of
from maskvlm_jax.runtime.errors import UserError

LABELS = ("first", "second", "neither")
VERSION = 1  # raise it whenever any example changes
TRIES = 8  # to find a picture of which the caption is not told
_ROLLS = 2 + 2 * TRIES


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """The split of the set that `data.of` reads.

    Raises:
        UserError: it has fewer than three pictures, or whatever its kind of source finds wrong.
    """
    return Assignments(opening.open_source({**data, "source": data["of"]}, split, image_size), split)


class Assignments:
    """See the module.

    Args:
        source: of captioned pictures.
        split: its name.
    """

    def __init__(self, source: Source, split: str):
        if len(source) < 3:
            raise UserError(f"assignments: the split {split!r} has {len(source)} pictures; at least three are needed")
        self._source, self._split = source, zlib.crc32(split.encode())
        self.report = source.report
        self.id_reads_record = getattr(source, "id_reads_record", False)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        captions, label, others = self._drawn(index)
        own, *strangers = (self._source[i]["image"] for i in (index, *others[: 2 if label == "neither" else 1]))
        pictures = {"first": (own, *strangers), "second": (*strangers, own), "neither": strangers}[label]
        return {
            **facts_of(self._source, index),
            "image": pictures[0],
            "image2": pictures[1],
            "captions": captions,
            "label": label,
        }

    def facts(self, index: int) -> dict[str, Any]:
        """All but the pictures."""
        captions, label, _ = self._drawn(index)
        return {**facts_of(self._source, index), "captions": captions, "label": label}

    def id(self, index: int) -> str:
        return self._source.id(index)

    def captions(self, index: int) -> list[str]:
        return self._drawn(index)[0]

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"assignments:{VERSION}:{self._source.fingerprint}".encode()).hexdigest()

    def _drawn(self, index: int) -> tuple[list[str], str, tuple[int, int]]:
        """The caption, [] if the example has none, the label, and the numbers of two other pictures."""
        dice = Dice(np.random.Philox(key=self._split << 64 | index).random_raw(_ROLLS).tolist())
        captions = self._source.captions(index)
        chosen, label = dice.roll(max(1, len(captions))), LABELS[dice.roll(len(LABELS))]
        told = captions[chosen : chosen + 1]
        other = self._other(dice, {index}, told)
        return told, label, (other, self._other(dice, {index, other}, told))

    def _other(self, dice: Dice, taken: set[int], told: list[str]) -> int:
        """A picture that is none of those, and of which the caption is not told if one is found in a few tries."""
        free = len(self) - len(taken)
        for _ in range(TRIES):
            number = dice.roll(free)
            for one in sorted(taken):
                number += number >= one
            if not set(told) & set(self._source.captions(number)):
                break
        return number
