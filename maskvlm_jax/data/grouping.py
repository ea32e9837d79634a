"""An order of the training set in which examples that are alike come in one batch, so that its negatives are hard.

After the grouped mini-batches of GRIT-VLP (Byun et al. 2022, arXiv 2208.04060), whose order of an epoch is made of the
features that the run itself had in the epoch before, on each device of its own examples. Here it is made of features
that another model gave before the first step, which stay as they are: the order is then a function of these, the seed
and the position, the same on any number of processes and after any restart. The rest is GRIT-VLP's: examples are
shuffled and cut into parts; in a part the picture of an example takes the unused example whose text is likest, the text
of that the one whose picture is likest, and so on; batches are cut from these chains, and come in a random order. After
SyncMask (Song et al. 2024, arXiv 2404.01156) it is not the likest that is taken, which may be a match that nobody wrote
down, but one of the next likest, "semi-hard"; which of them is our choice.

Features are whole numbers: their products are exact in float32 in whatever order they are added up, on any machine.
"""

import hashlib
import sys
from functools import cached_property, lru_cache
from pathlib import Path

import grain
import numpy as np

from maskvlm_jax.data.sources.base import Source
from maskvlm_jax.data.sources.training_set import Limited

LARGEST = 127  # of a feature: of a unit vector, times this


def whole_numbers(features_NE: np.ndarray) -> np.ndarray:
    """int8 features of unit length times 127; zeros, which are like nothing, stay zeros."""
    norm_N1 = np.linalg.norm(features_NE, axis=1, keepdims=True)
    return np.rint(LARGEST * features_NE / np.where(norm_N1 > 0, norm_N1, 1.0)).astype(np.int8)


class Grouping(grain.transforms.DatasetSelectionMap):
    """Position of the stream -> (0, example).

    An epoch is as many whole batches as there are; which examples it leaves out is drawn anew for each.

    Args:
        path: of int8 features of pictures and of texts, (2, N, E), as `numpy.save` writes them.
        batch_size: global.
        part: examples of a part, in whole batches, of which it has at least two: with one nothing is grouped.
        ranks: the first and the last of the candidates that are taken, 1 = the likest; one is drawn for each example.
        seed: of the run.
    """

    def __init__(self, path: Path, *, batch_size: int, part: int, ranks: tuple[int, int], seed: int = 0):
        self._arguments = {"batch_size": batch_size, "part": part, "ranks": tuple(ranks)}
        self._path, self._batch_size, self._ranks, self._seed = path, batch_size, tuple(ranks), seed
        self._batches = self._features.shape[1] // batch_size  # of an epoch
        self._of_part = part // batch_size  # batches
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._part = lru_cache(maxsize=2 * -(-self._batches // self._of_part))(self._make_part)

    def seeded(self, seed: int) -> "Grouping":
        """The order of a run of that seed."""
        return Grouping(self._path, **self._arguments, seed=seed)

    def __reduce__(self):  # neither features nor a cache travel to worker processes
        return _made, (self._path, self._arguments, self._seed)

    @cached_property
    def _features(self) -> np.ndarray:
        return np.load(self._path, mmap_mode="r")

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        batch, place = divmod(index, self._batch_size)
        epoch, number = divmod(batch, self._batches)
        part, first = divmod(int(self._epoch(epoch)[1][number]), self._of_part)
        return 0, int(self._part(epoch, part)[first * self._batch_size + place])

    def _rng(self, epoch: int, part: int = -1) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self._seed, epoch], counter=[0, 0, 0, part + 1]))

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Examples, part by part, and the order of the batches that are made of them."""
        rng = self._rng(epoch)
        examples = rng.permutation(self._features.shape[1])[: self._batches * self._batch_size]
        return examples, rng.permutation(self._batches)

    def _make_part(self, epoch: int, part: int) -> np.ndarray:
        """The examples of a part, one behind the other as they are like each other."""
        size = self._of_part * self._batch_size
        examples_P, rng = self._epoch(epoch)[0][part * size : (part + 1) * size], self._rng(epoch, part)
        image_PE, text_PE = self._features[:, examples_P].astype(np.float32)
        first, ranks_P = int(rng.integers(len(examples_P))), rng.integers(*self._ranks, len(examples_P), endpoint=True)
        return examples_P[chain(image_PE @ text_PE.T, first, ranks_P)]


def _made(path: Path, arguments: dict, seed: int) -> Grouping:
    return Grouping(path, **arguments, seed=seed)


def chain(similarity_PP: np.ndarray, first: int, ranks_P: np.ndarray) -> np.ndarray:
    """The numbers of all examples, in an order in which each is like the one before.

    Args:
        similarity_PP: of pictures (rows) with texts, whole numbers.
        first: where it begins.
        ranks_P: which of the unused ones is taken at each place, 1 = the likest, the last where there are fewer; of
            equal ones the lower number comes first.
    """
    size = len(similarity_PP)
    # One number for each: by similarity, then by place. No two are equal, so that selecting is as good as sorting.
    forth_PP = similarity_PP.astype(np.int64) * size - np.arange(size)
    back_PP = similarity_PP.T.astype(np.int64) * size - np.arange(size)
    chosen_P, used = np.empty(size, np.int64), np.iinfo(np.int64).min
    current = first
    for place in range(size):
        chosen_P[place] = current
        forth_PP[:, current] = back_PP[:, current] = used
        if place + 1 < size:
            row_P, left = (back_PP if place % 2 else forth_PP)[current], size - place - 1
            nth = size - min(int(ranks_P[place + 1]), left)
            current = int(np.argpartition(row_P, nth)[nth])
    return chosen_P


class Grouped(Limited):
    """The training set of one source, read in the order of a grouping.

    Args:
        source: the set.
        limit: examples that are drawn.
        grouping: of as many examples.
        sha256: of the grouping's features; the fingerprint tells them.
    """

    def __init__(self, source: Source, limit: int, grouping: Grouping, sha256: str):
        super().__init__(source, limit)
        self.grouping, self._sha256 = grouping, sha256

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the source's and of the features."""
        return hashlib.sha256(f"{super().fingerprint} grouped by {self._sha256}".encode()).hexdigest()
