"""The caption's tokens, which of them are hidden, and what is seen in their place."""

import numpy as np

from maskvlm_jax.data import batch as batches
from maskvlm_jax.data import masking
from maskvlm_jax.data.fields import base
from maskvlm_jax.data.fields.base import Array, Drawn, Sizes
from maskvlm_jax.data.tokenizer import Tokenizer


class Field(base.Field):
    """The arrays of a batch's text, `batch.TEXT`; no word where captions are absent.

    Args:
        tokenizer: may be None where only `arrays` is asked.
    """

    of = "caption"

    def __init__(self, label: str, sizes: Sizes, tokenizer: Tokenizer | None):
        self._length, self._tokenizer = sizes.max_length, tokenizer

    def arrays(self) -> dict[str, Array]:
        return {name: Array((self._length,), dtype) for name, dtype in batches.TEXT.items()}

    def make(self, drawn: Drawn, rng: np.random.Generator) -> dict[str, np.ndarray]:
        options, tokenizer = drawn.masking, self._tokenizer
        caption = "" if drawn.lacks("captions", "caption") else drawn.caption
        tokens, word_ids, valid = tokenizer.encode(caption, self._length)
        hidden = masking.sample_text_mask(rng, word_ids, ratio=options["text_ratio"], whole_word=options["whole_word"])
        seen = masking.corrupt_tokens(
            rng,
            tokens,
            hidden,
            mask_id=tokenizer.mask_id,
            ordinary_ids=tokenizer.ordinary_ids,
            corruption=options["text_corruption"],
        )
        return {"tokens": tokens, "tokens_masked": seen, "token_valid": valid, "text_masked": hidden}
