"""What the examples of a source are like: whether they are sound, how large, which look alike.

The perceptual hash is the usual one of 64 bits: the picture in grey at 32 x 32 pixels, its cosine transform's 8 x 8
lowest frequencies, each above or not above their median. Copies that were resized, re-encoded or slightly recoloured
are a few bits apart, other pictures about 32; mirrored copies are not found, cropped ones rarely.
"""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import msgpack
import numpy as np

from maskvlm_jax.data import decoding
from maskvlm_jax.data.sources.written_text import usable_captions

HASH_BITS = 64
SIDE_EDGES = (0, 32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024, 2048)  # pixels
WORD_EDGES = (1, 4, 7, 10, 13, 16, 19, 22, 25, 31, 41, 51, 101)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_DECODED_SIDE = 64  # of the picture that is hashed, at least
_DCT_SIDE, _LOW = 32, 8
_BLOCK = 1 << 22  # hash pairs compared at a time: 32 MB


@dataclasses.dataclass(frozen=True)
class Facts:
    """What one example is like.

    Attributes:
        captions: those that are text, white space collapsed.
        sha256: of the picture's bytes.
        phash: perceptual hash; 0 where the picture cannot be decoded.
        width, height: of the picture as it is stored, upright; 0 where it cannot be decoded.
        reason: why the example cannot be used: "unreadable", "not a picture", "too large", "too small",
            "no caption"; "" where it can.
        detail: more of the reason.
    """

    id: str
    captions: list[str]
    sha256: bytes
    phash: int = 0
    width: int = 0
    height: int = 0
    reason: str = ""
    detail: str = ""


def examine(example: Mapping[str, Any], *, min_size: int = 0) -> Facts:
    """Decodes and measures one example; `min_size` is the shortest side allowed, in pixels."""
    image, captions = example["image"], usable_captions(example["captions"])
    facts = Facts(example["id"], captions, image_sha256(image))
    try:
        pixels = decoding.decode(image, min_size=_DECODED_SIDE)  # all of the file is read at any scale
        height, width = decoding.picture_size(image)
    except decoding.DecodeError as error:
        return dataclasses.replace(facts, reason=error.kind, detail=_reproducible(str(error)))
    reason, detail = "", ""
    if min(width, height) < min_size:
        reason, detail = "too small", f"{width} x {height} pixels"
    elif not captions:
        reason = "no caption"
    return dataclasses.replace(facts, phash=phash(pixels), width=width, height=height, reason=reason, detail=detail)


def image_sha256(image: bytes | np.ndarray) -> bytes:
    """SHA-256 of a picture's bytes; of an array, of its shape and pixels."""
    if isinstance(image, np.ndarray):
        return hashlib.sha256(str(image.shape).encode() + image.tobytes()).digest()
    return hashlib.sha256(image).digest()


def _reproducible(message: str) -> str:
    """A message of Pillow's without the address of the object it read from."""
    return re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", message)


def phash(pixels: np.ndarray) -> int:
    """Perceptual hash, 64 bits, of uint8 RGB (height, width, 3)."""
    grey = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (_DCT_SIDE, _DCT_SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(grey.astype(np.float32))[:_LOW, :_LOW].ravel()
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def nearest(hashes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of `hashes` the first of `others` that differs in the fewest bits: (bits, number among `others`).

    Both are uint64; `others` is not empty.
    """
    bits, number = np.empty(len(hashes), np.uint8), np.empty(len(hashes), np.int64)
    rows = max(1, _BLOCK // len(others))
    for start in range(0, len(hashes), rows):
        differing = np.bitwise_count(hashes[start : start + rows, None] ^ others[None])
        number[start : start + rows] = differing.argmin(axis=1)
        bits[start : start + rows] = differing.min(axis=1)
    return bits, number


def first_of_equal(digests: np.ndarray) -> np.ndarray:
    """For each of the digests, (n, 32) uint8, the number of the first that is equal to it: its own where it is new."""
    whole = np.ascontiguousarray(digests).view("S32").ravel()
    _, first, group = np.unique(whole, return_index=True, return_inverse=True)
    return first[group]


def pack(facts: Iterable[Facts]) -> bytes:
    """Facts as MessagePack."""
    return msgpack.packb([list(vars(one).values()) for one in facts], unicode_errors="surrogatepass")


def load(path: Path) -> list[Facts]:
    """Facts from a file of what `pack` made."""
    return [Facts(*values) for values in msgpack.unpackb(path.read_bytes(), unicode_errors="surrogatepass")]


class Table(NamedTuple):
    """Facts of a set in columns, a tenth of their size as objects: half a gigabyte for five million examples."""

    reason: list[str]
    detail: dict[int, str]  # only where there is one
    sha256: np.ndarray  # (n, 32) uint8
    phash: np.ndarray  # (n,) uint64
    short_side: np.ndarray  # (n,) int32, pixels
    captions: np.ndarray  # (n,) int32, how many
    words: np.ndarray  # (captions of all,) int32, how many words each has

    @classmethod
    def read(cls, paths: Iterable[Path]) -> "Table":
        """Reads files of what `pack` made."""
        reason, detail, sha256, phash, side, captions, words = [], {}, [], [], [], [], []
        for facts in (facts for path in paths for facts in load(path)):
            if facts.detail:
                detail[len(reason)] = facts.detail
            reason.append(facts.reason)
            sha256.append(facts.sha256)
            phash.append(facts.phash)
            side.append(min(facts.width, facts.height))
            captions.append(len(facts.captions))
            words += [len(caption.split()) for caption in facts.captions]
        digests = np.frombuffer(b"".join(sha256), np.uint8).reshape(-1, 32)
        integers = (np.array(column, np.int32) for column in (side, captions, words))
        return cls(reason, detail, digests, np.array(phash, np.uint64), *integers)


def left_out(report: Mapping[str, int]) -> int:
    """How many pictures are not in a source, of those in its report that speak of pictures; repeats are no loss."""
    return sum(count for reason, count in report.items() if "picture" in reason and "repeated" not in reason)


def spread(values: np.ndarray, edges: Sequence[int]) -> dict[str, dict[str, int]]:
    """Histogram and quantiles of whole numbers, as JSON holds them; `edges` are the bins' lowest values."""
    if not len(values):
        return {"histogram": {}, "quantiles": {}}
    counts = np.bincount(np.searchsorted(edges, values, side="right") - 1, minlength=len(edges))
    labels = [*(f"{low}-{high - 1}" for low, high in itertools.pairwise(edges)), f"{edges[-1]}-"]
    used = np.flatnonzero(counts)
    shown = range(used[0], used[-1] + 1)
    quantiles = np.quantile(values, QUANTILES, method="inverted_cdf")
    return {
        "histogram": {labels[i]: int(counts[i]) for i in shown},
        "quantiles": {f"{100 * share:.0f} %": int(value) for share, value in zip(QUANTILES, quantiles, strict=True)},
    }


def bars(title: str, found: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Lines of text that show a `spread`."""
    histogram, quantiles = found["histogram"], found["quantiles"]
    total, most = sum(histogram.values()), max(histogram.values(), default=0)
    shares, values = ", ".join(share.removesuffix(" %") for share in quantiles), ", ".join(map(str, quantiles.values()))
    lines = [f"{title}: " + (f"{shares} % have at most {values}" if total else "none")]
    for label, count in histogram.items():
        bar = "#" * -(-40 * count // most)
        lines.append(f"  {label:>9}  {bar:<40} {count:>10,}  {100 * count / total:5.1f} %")
    return lines
