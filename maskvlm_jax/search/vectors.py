"""Vectors in two files, searched exactly: one in float16 that is read whole for a query, one in float32.

float16 alone would tell some neighbours apart by their rounding: of a thousand captions of the first run's test scenes,
15 would find their ten nearest in another order than the evaluation does. So it only chooses, with a margin that is
wider than its rounding can be, whose float32 is compared. That is what makes recalls through a search those of the
evaluation, to the digit.
"""

import os
from pathlib import Path

import numpy as np

from maskvlm_jax.runtime.errors import UserError, writing

_COARSE, _FINE = "vectors.f16", "vectors.f32"
BLOCK = 1024  # rows that are widened at a time: they stay in a core's cache
# Twice what rounding to float16 may change of a product of unit vectors: 2^-11 of it, and a little below its range.
MARGIN = 2 * 2.0**-11 + 1e-5


class ExactStore:
    """Vectors of unit length by row.

    Args:
        index: the folder of the index.
        embed_dim: numbers of a vector.
    """

    def __init__(self, index: Path, embed_dim: int):
        self._index, self._width = index, embed_dim

    def write(self, first: int, vectors: np.ndarray) -> None:
        """Stores (n, E) vectors as rows from `first` on; they are on the disk when it returns."""
        for name, kind in ((_COARSE, "<f2"), (_FINE, "<f4")):
            values, path = vectors.astype(kind), self._index / name
            with writing(path), open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as file:
                file.seek(first * self._width * values.itemsize)
                content = memoryview(values).cast("B")
                while content:
                    content = content[file.write(content) :]
                os.fsync(file.fileno())

    def _rows(self, name: str, kind: str, count: int) -> np.ndarray:
        """(count, E), mapped."""
        path, shape = self._index / name, (count, self._width)
        if not count:
            return np.zeros(shape, kind)
        try:
            return np.memmap(path, kind, "r", shape=shape)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}); make the index anew") from error

    def read(self, rows: np.ndarray) -> np.ndarray:
        """(n, E) float32 of some rows."""
        rows = np.asarray(rows, np.int64)
        return np.array(self._rows(_FINE, "<f4", int(rows.max(initial=-1)) + 1)[rows])

    def top(self, query: np.ndarray, k: int, live: np.ndarray, *, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The k live rows nearest to a unit vector, and their cosines, the highest first.

        Args:
            live: (rows,) bool, which of all rows are looked for.
            first: row to begin with.
        """
        rows = self._rows(_COARSE, "<f2", len(live))[first:]
        coarse = np.empty(len(rows), np.float32)
        wide, query = np.empty((BLOCK, self._width), np.float32), query.astype(np.float32)
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            wide[: len(block)] = block
            np.dot(wide[: len(block)], query, out=coarse[start : start + len(block)])
        coarse[~live[first:]] = -np.inf
        k = min(k, int(np.isfinite(coarse).sum()))
        if not k:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        least = np.partition(coarse, len(coarse) - k)[len(coarse) - k]
        return self.nearest(query, np.flatnonzero(coarse >= least - MARGIN) + first, k)

    def finish(self, rows: int) -> None:
        """To be called at the end of an update, with the number of rows there are: nothing is left to do."""

    def nearest(self, query: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of some rows, compared in float32; of equal ones the first."""
        cosines = self.read(rows) @ query.astype(np.float32)
        order = np.lexsort((rows, -cosines))[:k]
        return rows[order], cosines[order]
