"""Pictures for a browser: small ones from memory, whole ones in a format that it shows."""

import threading
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from maskvlm_jax.data import decoding

SIDE = 400  # pixels of a thumbnail's longer side, at most
_WHOLE_SIDE = 2400  # of a picture that browsers cannot show themselves
_MOST_BYTES = 64 << 20  # of all thumbnails that are kept
# Formats that every browser shows, by what their files begin with. SVG is none of them: it is a page, with scripts.
_SHOWN = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png", b"GIF8": "image/gif"}


def shown_as_it_is(path: Path) -> str:
    """The media type of a file that every browser shows; "" of others.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(16)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "image/webp"
    return next((media for mark, media in _SHOWN.items() if start.startswith(mark)), "")


def as_jpeg(path: Path, side: int = _WHOLE_SIDE) -> bytes:
    """A picture, no longer than `side` pixels, upright and without transparency.

    Raises:
        OSError: the file cannot be read.
        DecodeError: it is no picture, or has too many pixels.
    """
    pixels = decoding.decode(path.read_bytes(), min_size=side)
    scale = side / max(pixels.shape[:2])
    if scale < 1:
        height, width = (max(1, round(length * scale)) for length in pixels.shape[:2])
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    # 4:4:4, as drawings have edges of pure colours.
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=88, colorsubsampling="444")


class Thumbnails:
    """Thumbnails by row, the last used of them in memory."""

    def __init__(self, most_bytes: int = _MOST_BYTES):
        self._most, self._bytes = most_bytes, 0
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, row: int, path: Path) -> bytes:
        """The thumbnail of a row, whose file is at `path`; errors as of `as_jpeg`."""
        with self._lock:
            if row in self._kept:
                self._kept.move_to_end(row)
                return self._kept[row]
        made = as_jpeg(path, SIDE)
        with self._lock:
            self._bytes += len(made) - len(self._kept.pop(row, b""))
            self._kept[row] = made
            while self._bytes > self._most:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= len(dropped)
        return made
