"""Where in the picture the thing is that the caption speaks of, and where else it could be."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskvlm_jax.data.fields import base
from maskvlm_jax.data.fields.base import Array, Drawn, Sizes
from maskvlm_jax.runtime.errors import UserError


class Field(base.Field):
    """Boxes of the whole picture, for evaluation: a crop or a flip of training does not move them.

    Arrays; a box is (x0, y0, x1, y1) in shares of width and height, since pictures are squeezed to a square:

        LABEL_true        (4,) float32
        LABEL_candidates  (M, 4) float32, padded with zeros
        LABEL_count       () int32, how many candidates there are
        LABEL_size        (2,) int32, height and width of the picture as it is stored, in pixels

    Args:
        key: of the source's example where the true box is, in pixels of the picture as it is stored, (x0, y0, x1, y1);
            "size", (height, width) of that picture, is beside it.
        candidates: of the list of boxes that it is chosen from; an example may have none.
        most: M, the most candidates of an example.
    """

    def __init__(
        self,
        label: str,
        sizes: Sizes,
        tokenizer: Any = None,
        *,
        key: str = "box",
        candidates: str = "candidates",
        most: int = 1,
    ):
        self._label, self._key, self._candidates, self._most = label, key, candidates, most
        if most < 1:
            raise UserError(f"data.fields.{label}.most is {most}; give the most candidates of an example, at least 1")

    def arrays(self) -> dict[str, Array]:
        return {
            f"{self._label}_true": Array((4,), np.float32),
            f"{self._label}_candidates": Array((self._most, 4), np.float32),
            f"{self._label}_count": Array((), np.int32),
            f"{self._label}_size": Array((2,), np.int32),
        }

    def make(self, drawn: Drawn, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Raises UserError: the example has no such box, one that is none, or more candidates than `most`."""
        example = drawn.example
        if self._key not in example or "size" not in example:
            lacking = self._key if self._key not in example else "size"
            raise UserError(f"{example['id']} has no {lacking!r}, which data.fields.{self._label} reads")
        given = example.get(self._candidates) or ()
        if len(given) > self._most:
            raise UserError(
                f"{example['id']} has {len(given)} candidates; set --config.data.fields.{self._label}.most to the most"
            )
        height, width = example["size"]
        shares = np.zeros((self._most, 4), np.float32)
        for i, box in enumerate(given):
            shares[i] = self._share(box, height, width, example["id"])
        return {
            f"{self._label}_true": self._share(example[self._key], height, width, example["id"]),
            f"{self._label}_candidates": shares,
            f"{self._label}_count": np.int32(len(given)),
            f"{self._label}_size": np.array([height, width], np.int32),
        }

    def _share(self, box: Sequence[float], height: int, width: int, name: str) -> np.ndarray:
        x0, y0, x1, y1 = box
        if not (max(x0, 0) < min(x1, width) and max(y0, 0) < min(y1, height)):  # nor where one is no number
            raise UserError(f"{name} has the box {tuple(box)}, no part of which is in its {width} x {height} pixels")
        return np.array([x0 / width, y0 / height, x1 / width, y1 / height], np.float32)
