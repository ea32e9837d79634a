"""Which part of a mixture each position of the stream draws from, and which draw of that part it is."""

import sys
from functools import lru_cache

import grain
import numpy as np

BLOCK = 1024  # positions that are put in a random order together


class Interleaving(grain.transforms.DatasetSelectionMap):
    """Position -> (part, number of the draw from that part), a function of (weights, seed, position) alone.

    Of the first n positions part k has n w_k, to within a block; within a block of 1,024 the order is random, drawn
    from (seed, block). Grain's own mixture repeats one fixed pattern, and takes as long to find an element as it takes
    to read it.

    Args:
        weights: of the parts; their sum does not matter.
    """

    def __init__(self, weights: list[float], seed: int):
        self._shares = np.array(weights, np.float64) / np.sum(weights)
        self._largest = int(np.argmax(self._shares))
        self._seed = seed
        self._block = lru_cache(maxsize=16)(self._make_block)

    def __reduce__(self):  # a cache does not travel to worker processes
        return Interleaving, (self._shares.tolist(), self._seed)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        block, place = divmod(index, BLOCK)
        parts, draws = self._block(block)
        return int(parts[place]), int(draws[place])

    def _drawn(self, positions: int) -> np.ndarray:
        """How often each part was drawn in the first positions; the largest part takes what rounding leaves."""
        counts = np.floor(positions * self._shares).astype(np.int64)
        counts[self._largest] += positions - counts.sum()
        return counts

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        before, after = self._drawn(block * BLOCK), self._drawn((block + 1) * BLOCK)
        rng = np.random.Generator(np.random.Philox(key=[self._seed, block]))
        parts = rng.permutation(np.repeat(np.arange(len(before)), after - before))
        draws = np.empty_like(parts)
        for part, first in enumerate(before):
            here = parts == part
            draws[here] = first + np.arange(here.sum())
        return parts, draws
