"""A text that the source knows of an example beside its captions."""

import numpy as np

from maskvlm_jax.data.fields import base
from maskvlm_jax.data.fields.base import Array, Drawn, Sizes
from maskvlm_jax.data.tokenizer import Tokenizer
from maskvlm_jax.runtime.errors import UserError


class Field(base.Field):
    """The arrays LABEL_tokens, (L,) int32, and LABEL_valid, (L,) bool: True = a real token; no word where the text is
    absent or lost.

    Args:
        key: of the source's example where the text is; "" = `label`.
    """

    def __init__(self, label: str, sizes: Sizes, tokenizer: Tokenizer | None, *, key: str = ""):
        self._label, self._length, self._tokenizer, self._key = label, sizes.max_length, tokenizer, key or label

    def arrays(self) -> dict[str, Array]:
        return {
            f"{self._label}_tokens": Array((self._length,), np.int32),
            f"{self._label}_valid": Array((self._length,), bool),
        }

    def make(self, drawn: Drawn, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Raises UserError: the example has no such text."""
        text = "" if drawn.lacks(self._key, "caption") else drawn.example.get(self._key)
        if not isinstance(text, str):
            raise UserError(f"{drawn.example['id']} has no text {self._key!r}, which data.fields.{self._label} reads")
        tokens, _, valid = self._tokenizer.encode(text, self._length)
        return {f"{self._label}_tokens": tokens, f"{self._label}_valid": valid}
