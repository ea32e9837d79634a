"""Several sets as one training set."""

import bisect
import hashlib
import itertools
import math
from functools import cached_property
from typing import Any

from maskvlm_jax.data.sources.base import Source, facts_of
from maskvlm_jax.runtime.errors import UserError


class Mixture:
    """The training set of several sources, one behind the other; weights say how often each is drawn from.

    Args:
        parts: (name, source, weight, limit) of each: only its first `limit` examples are drawn, 0 = all; all weights 0
            draw every example equally often.

    Raises:
        UserError: a negative weight, or some weights of 0 and some not.
    """

    def __init__(self, parts: list[tuple[str, Source, float, int]]):
        self._names, self._sources, weights, limits = zip(*parts, strict=True)
        lengths = [len(source) for source in self._sources]
        self._starts = [0, *itertools.accumulate(lengths)]
        sizes = [min(length, limit or length) for length, limit in zip(lengths, limits, strict=True)]
        self.ranges = [range(start, start + size) for start, size in zip(self._starts, sizes, strict=False)]
        if any(weight < 0 for weight in weights) or (any(weights) and not all(weights)):
            shown = ", ".join(f"{name} {weight}" for name, weight in zip(self._names, weights, strict=True))
            raise UserError(
                f"the weights of a mixture are {shown}; give each a positive one, or 0 to all to draw by their sizes"
            )
        self.weights = list(weights) if any(weights) else [float(size) for size in sizes]
        self.report = {
            f"{name}: {reason}": count
            for name, source in zip(self._names, self._sources, strict=True)
            for reason, count in source.report.items()
        }

    def first(self, count: int) -> list[int]:
        """About `count` example numbers, the first of each part in proportion to the parts' sizes."""
        share = min(1.0, count / sum(map(len, self.ranges)))
        return [index for part in self.ranges for index in part[: math.ceil(share * len(part))]]

    def part(self, name: str) -> tuple[Source, int]:
        """A set by its name, and how many of its first examples are drawn."""
        place = self._names.index(name)
        return self._sources[place], len(self.ranges[place])

    def _at(self, index: int) -> tuple[str, Source, int]:
        part = bisect.bisect_right(self._starts, index) - 1
        return self._names[part], self._sources[part], index - self._starts[part]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, source, local = self._at(index)
        example = source[local]
        return example | {"id": f"{name}/{example['id']}"}

    def facts(self, index: int) -> dict[str, Any]:
        name, source, local = self._at(index)
        known = facts_of(source, local)
        return known | {"id": f"{name}/{known['id']}"}

    def id(self, index: int) -> str:
        name, source, local = self._at(index)
        return f"{name}/{source.id(local)}"

    def captions(self, index: int) -> list[str]:
        _, source, local = self._at(index)
        return source.captions(local)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the parts' names and fingerprints."""
        parts = zip(self._names, self._sources, strict=True)
        return hashlib.sha256("".join(f"{name} {source.fingerprint}\n" for name, source in parts).encode()).hexdigest()
