"""What a run draws its examples from: one source here, several in `mixture`."""

from collections.abc import Sequence
from typing import Any, Protocol

from maskvlm_jax.data.sources.base import Source, facts_of


class TrainingSet(Source, Protocol):
    """A source that knows which of its examples are drawn, and how often.

    It holds those too that are not drawn: one of them may stand in for a broken one.

    Attributes:
        ranges: the example numbers that are drawn, a range for each part.
        weights: how often each part is drawn; their sum does not matter.
        grouping: optional, of a set of one part; the order that it is read in, see `data.grouping`.
    """

    ranges: list[range]
    weights: list[float]

    def first(self, count: int) -> Sequence[int]:
        """About `count` of the numbers that are drawn, of each part the first."""
        ...

    def part(self, name: str) -> tuple[Source, int]:
        """The set of that name, and how many of its first examples are drawn. Where there is but one, that."""
        ...


class Limited:
    """The training set of one source, of which the first `limit` examples are drawn; 0 = all."""

    def __init__(self, source: Source, limit: int = 0):
        self._source, self.report = source, source.report
        self.ranges, self.weights = [range(min(limit or len(source), len(source)))], [1.0]

    def first(self, count: int) -> range:
        return self.ranges[0][:count]

    def part(self, name: str) -> tuple[Source, int]:
        return self._source, len(self.ranges[0])

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[index]

    def facts(self, index: int) -> dict[str, Any]:
        return facts_of(self._source, index)

    def id(self, index: int) -> str:
        return self._source.id(index)

    def captions(self, index: int) -> list[str]:
        return self._source.captions(index)

    @property
    def fingerprint(self) -> str:
        """The source's own: the limit is part of the config."""
        return self._source.fingerprint


class Spread:
    """As many examples of a source as are wanted, spread evenly over it: of a set that is sorted by class some of each.

    Args:
        count: of examples; 0 = all, and all where there are fewer.
    """

    def __init__(self, source: Source, count: int):
        self._source, self._count = source, min(count or len(source), len(source))
        self.report, self.classes = source.report, getattr(source, "classes", ())

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[self._place(index)]

    def id(self, index: int) -> str:
        return self._source.id(self._place(index))

    def captions(self, index: int) -> list[str]:
        return self._source.captions(self._place(index))

    @property
    def fingerprint(self) -> str:
        """The source's own."""
        return self._source.fingerprint

    def _place(self, index: int) -> int:
        return index * len(self._source) // self._count
