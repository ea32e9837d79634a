"""Which patches of the picture are hidden."""

from typing import Any

import numpy as np

from maskvlm_jax.data import masking
from maskvlm_jax.data.fields import base
from maskvlm_jax.data.fields.base import Array, Drawn, Sizes


class Field(base.Field):
    """The array `label`, (N,) bool: True where a patch is hidden."""

    def __init__(self, label: str, sizes: Sizes, tokenizer: Any = None):
        self._label, self._grid = label, sizes.image_size // sizes.patch

    def arrays(self) -> dict[str, Array]:
        return {self._label: Array((self._grid**2,), bool)}

    def make(self, drawn: Drawn, rng: np.random.Generator) -> dict[str, np.ndarray]:
        cell, ratio = drawn.masking["image_cell"], drawn.masking["image_ratio"]
        return {self._label: masking.sample_image_mask(rng, self._grid, cell=cell, ratio=ratio)}
