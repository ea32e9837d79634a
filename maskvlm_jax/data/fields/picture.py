"""A picture: the example's own, or another one that the source knows of it."""

from typing import Any

import numpy as np

from maskvlm_jax.data import batch as batches
from maskvlm_jax.data.fields import base
from maskvlm_jax.data.fields.base import Array, Drawn, Sizes
from maskvlm_jax.runtime.errors import UserError


class Field(base.Field):
    """The array `label`, (Y, X, 3) uint8; the mean colour where the picture is absent or lost.

    Args:
        key: of the source's example where another encoded picture or pixels are; "" = the example's own picture.
    """

    def __init__(self, label: str, sizes: Sizes, tokenizer: Any = None, *, key: str = ""):
        self._label, self._size, self._key = label, sizes.image_size, key

    def arrays(self) -> dict[str, Array]:
        return {self._label: Array((self._size, self._size, 3), np.uint8)}

    def make(self, drawn: Drawn, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Raises UserError: the example has no such picture."""
        if drawn.lacks(self._key or "image", "picture"):
            return {self._label: batches.without_picture(drawn.pixels)}
        if not self._key:
            return {self._label: drawn.pixels}
        if self._key not in drawn.example:
            raise UserError(f"{drawn.example['id']} has no {self._key!r}, which data.fields.{self._label} reads")
        return {self._label: drawn.prepare(drawn.example[self._key])}
