"""The batch: the one contract between the host pipeline and the step.

    key            shape, type        meaning
    image          B,Y,X,3 uint8      augmented RGB; the device normalises it, and rebuilds it as it is here
    tokens         B,L int32          unmasked ids, start token first, padded
    tokens_masked  B,L int32          what the text encoder sees in the masked view
    token_valid    B,L bool           True = a real token
    image_masked   B,N bool           True = hidden from the encoder and predicted
    text_masked    B,L bool           True = hidden and predicted; never special, never padding
    pair_id        B,2 int32          hashes of picture and caption: where either is equal, not a negative
    example_valid  B bool             False = padding of a last evaluation batch

The pipeline yields two more for the host alone: `index` (B int64, which example of the source) and `replaced` (B int8,
not 0 where that example is broken and another stands in for it: `pipeline.BROKEN[replaced]` says why).

`pair_id` holds two hashes, of the picture's bytes and the caption's words, rather than one id so that a picture with
one caption in common with a second, and another in common with a third, needs no look at the whole set: an example's
ids are a function of that example alone.
"""

import re
import zlib
from typing import TypedDict

import numpy as np

from maskvlm_jax.data import masking
from maskvlm_jax.data.tokenizer import Tokenizer
from maskvlm_jax.data.transforms import IMAGENET_MEAN

HOST_KEYS = ("index", "replaced")
_WORDS = re.compile(r"\w+")
MEAN_COLOUR = np.rint(np.array(IMAGENET_MEAN) * 255).astype(np.uint8)


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


def batch_shapes(
    batch_size: int, *, image_size: int, patch: int, length: int
) -> dict[str, tuple[tuple[int, ...], type]]:
    """(shape, type) of each array of a batch as the device gets it."""
    patches, text = (image_size // patch) ** 2, (batch_size, length)
    return {
        "image": ((batch_size, image_size, image_size, 3), np.uint8),
        "tokens": (text, np.int32),
        "tokens_masked": (text, np.int32),
        "token_valid": (text, bool),
        "image_masked": ((batch_size, patches), bool),
        "text_masked": (text, bool),
        "pair_id": ((batch_size, 2), np.int32),
        "example_valid": ((batch_size,), bool),
    }


def image_hash(image: bytes | np.ndarray) -> np.int32:
    """A 32-bit hash of a picture as its source gives it: the same file under two names is one picture."""
    return _hash(np.ascontiguousarray(image) if isinstance(image, np.ndarray) else image)


def caption_hash(caption: str) -> np.int32:
    """A 32-bit hash of a caption's words: case, punctuation and white space do not count."""
    words = " ".join(_WORDS.findall(caption.lower())) or caption
    return _hash(words.encode())


def _hash(data: bytes | np.ndarray) -> np.int32:
    return np.uint32(zlib.crc32(data)).astype(np.int32)


def pair_id(image: np.int32, caption: str) -> np.ndarray:
    """(2,) int32: the picture's hash and the caption's."""
    return np.array([image, caption_hash(caption)], np.int32)


def without_picture(image: np.ndarray) -> np.ndarray:
    """Pictures (..., Y, X, 3) of the mean colour, in the place of `image`."""
    return np.broadcast_to(MEAN_COLOUR, image.shape).copy()


def text_fields(
    caption: str, tokenizer: Tokenizer, rng: np.random.Generator, *, max_length: int, options: dict
) -> dict[str, np.ndarray]:
    """The text arrays of one example; `options` are those of `config.masking`."""
    tokens, word_ids, valid = tokenizer.encode(caption, max_length)
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
        "token_valid": valid,
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
