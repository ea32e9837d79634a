"""A model that costs nothing, folders of pictures for it, and its index updated in a process of its own.

python -m tests.search.stand_ins INDEX [POINT SIGNAL COUNT]    where it gets a signal, see `get_signal`
"""

import itertools
import os
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from maskvlm_jax.search import facts, indexing
from maskvlm_jax.search.catalogue import Catalogue
from maskvlm_jax.search.facts import Facts
from maskvlm_jax.search.stores import open_store

WIDTH, SIZE = 16, 8


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


class StandIn:
    """A model of random vectors, the same for the same pixels and the same texts; counts what it embeds."""

    embed_dim, image_size, parameters_sha256, matches = WIDTH, SIZE, "a" * 64, True

    def __init__(self):
        self.embedded = 0

    def _of(self, content: bytes) -> np.ndarray:
        return unit(np.random.default_rng(zlib.crc32(content)).standard_normal(WIDTH)).astype(np.float32)

    def encode_images(self, images):
        if not isinstance(images, np.ndarray):  # one file, as in a query
            with Image.open(images) as picture:
                return self._of(np.asarray(picture.convert("RGB")).tobytes())
        self.embedded += len(images)
        return np.stack([self._of(pixels.tobytes()) for pixels in images])

    def encode_texts(self, text):
        return self._of(text.encode())

    def rerank(self, text, images, cosines):
        """The darker, the better."""
        probabilities = 1 - np.array([pixels.mean() for pixels in images]) / 255
        return probabilities, probabilities


def write_picture(path: Path, seed: int) -> None:
    """A picture of noise, the same for the same seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")


def made(index: Path, folder: Path, **values) -> Facts:
    """The facts of an index that nothing is in yet; they are written."""
    index.mkdir(exist_ok=True)
    told = Facts(str(folder), "nowhere", "3", "params", "stand-in", StandIn.parameters_sha256, SIZE, WIDTH, **values)
    facts.write(index, told)
    return told


def update(index: Path, model: StandIn | None = None) -> indexing.Report:
    """The index brought up to date by a model, one of its own if None."""
    model = model or StandIn()
    return indexing.update(index, facts.read(index), lambda: model)


def content(index: Path) -> list[tuple[bytes, bytes, bytes]]:
    """(name, sha256, vector) of all files of an index, whatever their rows are."""
    store, catalogue = open_store(index, facts.read(index)), Catalogue(index)
    return [(name, sha256, store.read([row])[0].tobytes()) for name, row, sha256 in catalogue.listing()]


def signalled(function, number: int, count: int):
    """`function`, but this process gets a signal before the call of that count."""
    calls = itertools.count(1)

    def call(*args):
        if next(calls) == count:
            os.kill(os.getpid(), number)
        return function(*args)

    return call


def get_signal(point: str, number: int, count: int) -> None:
    """Arranges that this process gets a signal in its update.

    Args:
        point: "embedding" of a batch, "vectors" when the first of two files is written, "stored" before a batch's
            transaction, or "transaction", within it.
        count: of such points, of files that a transaction writes in the last case.
    """
    if point == "transaction":
        add, passed = Catalogue.add, signalled(lambda file: file, number, count)
        Catalogue.add = lambda self, contents, seen: add(self, contents, map(passed, seen))
    else:
        where = {"embedding": (StandIn, "encode_images"), "vectors": (os, "fsync"), "stored": (Catalogue, "add")}
        owner, name = where[point]
        setattr(owner, name, signalled(getattr(owner, name), number, count))


if __name__ == "__main__":
    given = Path(sys.argv[1])
    if len(sys.argv) > 2:
        get_signal(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    with facts.locked(given):
        update(given)
