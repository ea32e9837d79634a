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

Fields that a config adds (`config.data.fields`) follow under their own names, and where features of a frozen image
encoder are kept (`config.data.cache_features`), `image_features` (B,S,D): what it makes of the whole picture.

The pipeline yields two more for the host alone: `index` (B int64, which example of the source) and `replaced` (B int8,
not 0 where that example is broken and another stands in for it: `training_stream.BROKEN[replaced]` says why).

`pair_id` holds two hashes, of the picture's bytes and the caption's words, rather than one id so that a picture with
one caption in common with a second, and another in common with a third, needs no look at the whole set: an example's
ids are a function of that example alone.
"""

import re
import zlib
from typing import TypedDict

import numpy as np

from maskvlm_jax.runtime.pixels import IMAGENET_MEAN

HOST_KEYS = ("index", "replaced")
FEATURES = "image_features"
# Arrays (B, L) of captions, and their types.
TEXT = {"tokens": np.int32, "tokens_masked": np.int32, "token_valid": bool, "text_masked": bool}
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
    return {key: value[:, :length] if key in TEXT else value for key, value in batch.items()}
