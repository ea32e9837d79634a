"""The batch: the one contract between the host pipeline and the step.

    key            shape, type        meaning
    image          B,Y,X,3 float32    augmented, normalised; also the target of masked image modelling
    tokens         B,L int32          unmasked ids, start token first, padded
    tokens_masked  B,L int32          what the text encoder sees in the masked view
    token_valid    B,L bool           True = a real token
    image_masked   B,N bool           True = hidden from the encoder and predicted
    text_masked    B,L bool           True = hidden and predicted; never special, never padding
    pair_id        B,2 int32          hashes of picture and caption: where either is equal, not a negative
    example_valid  B bool             False = padding of a last evaluation batch

The pipeline yields two more for the host alone: `index` (B int64, which example of the source) and `replaced` (B bool,
True where that example's own picture could not be decoded and another's stands in for it).

`pair_id` holds two hashes rather than one id so that a picture with one caption in common with a second, and another
in common with a third, needs no look at the whole set: an example's ids are a function of that example alone.
"""

import zlib
from typing import TypedDict

import numpy as np

from maskvlm_jax.data import masking
from maskvlm_jax.data.tokenizer import Tokenizer

HOST_KEYS = ("index", "replaced")


class Batch(TypedDict):
    """Arrays of a batch; see the module."""

    image: np.ndarray
    tokens: np.ndarray
    tokens_masked: np.ndarray
    token_valid: np.ndarray
    image_masked: np.ndarray
    text_masked: np.ndarray
    pair_id: np.ndarray
    example_valid: np.ndarray


def hash_id(text: str) -> np.int32:
    """A 32-bit hash of a text, the same on every machine."""
    return np.uint32(zlib.crc32(text.encode())).astype(np.int32)


def pair_id(example_id: str, caption: str) -> np.ndarray:
    """(2,) int32: hashes of the picture's id and of the caption, upper and lower case alike."""
    return np.array([hash_id(example_id), hash_id(" ".join(caption.lower().split()))], np.int32)


def text_fields(
    caption: str, tokenizer: Tokenizer, rng: np.random.Generator, *, max_length: int, options: dict
) -> dict[str, np.ndarray]:
    """The text arrays of one example; `options` are those of `config.masking`."""
    tokens, word_ids = tokenizer.encode(caption, max_length)
    text_masked = masking.sample_text_mask(rng, word_ids, ratio=options["text_ratio"], whole_word=options["whole_word"])
    tokens_masked = masking.corrupt_tokens(
        rng,
        tokens,
        text_masked,
        mask_id=tokenizer.mask_id,
        ordinary_ids=tokenizer.ordinary_ids,
        corruption=options["text_corruption"],
    )
    return {
        "tokens": tokens,
        "tokens_masked": tokens_masked,
        "token_valid": tokens != tokenizer.pad_id,
        "text_masked": text_masked,
    }


def without_words(text: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The text arrays, (..., L), of captions that hold nothing between their start and end token."""
    tokens, valid = text["tokens"], text["token_valid"]
    end = np.take_along_axis(tokens, valid.sum(axis=-1, keepdims=True) - 1, axis=-1)
    position = np.arange(tokens.shape[-1])
    empty = np.where(position == 1, end, tokens)
    return {
        "tokens": empty,
        "tokens_masked": empty,
        "token_valid": np.broadcast_to(position < 2, tokens.shape).copy(),
        "text_masked": np.zeros_like(valid),
    }


def trim(batch: dict[str, np.ndarray], buckets: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Cuts the text arrays to the shortest of the lengths `buckets` that holds the batch's longest caption."""
    longest = int(batch["token_valid"].sum(axis=1).max())
    length = min((bucket for bucket in buckets if bucket >= longest), default=batch["tokens"].shape[1])
    text = ("tokens", "tokens_masked", "token_valid", "text_masked")
    return {key: value[:, :length] if key in text else value for key, value in batch.items()}
