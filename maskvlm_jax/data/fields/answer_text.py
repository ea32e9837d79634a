"""The answers that people gave to the example's question, as tokens, and how many people gave each."""

import numpy as np

from maskvlm_jax.data import answers
from maskvlm_jax.data.fields import base
from maskvlm_jax.data.fields.answers import given_to
from maskvlm_jax.data.fields.base import Array, Drawn, Sizes
from maskvlm_jax.data.tokenizer import Tokenizer


class Field(base.Field):
    """The arrays LABEL_tokens, (G, L) int32, LABEL_valid, (G, L) bool, and LABEL_share, (G,) float32.

    A row is a different answer from start token to end token, the most frequent first; rows that are not needed have
    the share 0. Shares are of the people who answered.

    Args:
        most: G, how many different answers are read.
        length: L, tokens of an answer, those of start and end among them; what is longer is cut.
    """

    def __init__(self, label: str, sizes: Sizes, tokenizer: Tokenizer | None, *, most: int = 10, length: int = 12):
        self._label, self._tokenizer, self._shape = label, tokenizer, (most, min(length, sizes.max_length))

    def arrays(self) -> dict[str, Array]:
        return {
            f"{self._label}_tokens": Array(self._shape, np.int32),
            f"{self._label}_valid": Array(self._shape, bool),
            f"{self._label}_share": Array(self._shape[:1], np.float32),
        }

    def make(self, drawn: Drawn, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Raises UserError: the example's answers are no texts."""
        most, length = self._shape
        shares = answers.shares(given_to(drawn.example, self._label))
        texts = [*shares, *[""] * most][:most]
        encoded = [self._tokenizer.encode(text, length) for text in texts]
        share_G = np.array([shares.get(text, 0.0) for text in texts], np.float32)
        return {
            f"{self._label}_tokens": np.stack([tokens for tokens, _, _ in encoded]),
            f"{self._label}_valid": np.stack([valid for _, _, valid in encoded]),
            f"{self._label}_share": share_G,
        }
