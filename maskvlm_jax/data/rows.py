"""An array of many examples that need not fit into memory."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from maskvlm_jax.runtime import host


class Rows:
    """A row for each of many examples: the first are held, the others are made whenever they are asked for.

    Args:
        held: the first rows.
        count: of all rows.
        make: row number -> that row; called from several threads at once.
    """

    def __init__(self, held: np.ndarray, count: int, make: Callable[[int], np.ndarray]):
        self._held, self._count, self._make = held, count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, ids: int | np.ndarray) -> np.ndarray:
        """A row, or the rows of an array of numbers, stacked; numbers from 0 on."""
        if np.ndim(ids) == 0:
            return self._held[ids] if ids < len(self._held) else self._make(int(ids))
        ids = np.asarray(ids)
        if (ids < len(self._held)).all():
            return self._held[ids]
        with ThreadPoolExecutor(host.cores()) as pool:
            distinct, places = np.unique(ids, return_inverse=True)
            return np.stack(list(pool.map(self.__getitem__, distinct.tolist())))[places]

    def first(self, count: int) -> "Rows":
        """The first `count` rows."""
        return Rows(self._held[:count], min(count, self._count), self._make)
