"""A class that the source knows of a picture."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maskvlm_jax.data.fields import base
from maskvlm_jax.data.fields.base import Array, Drawn, Sizes
from maskvlm_jax.runtime.errors import UserError


class Field(base.Field):
    """The array `label`, a scalar int32: the number of the example's class.

    Args:
        key: of the source's example where it is; "" = `label`. With dots it leads further: "objects.0.shape" is the
            shape of the first of the objects, "objects.count" how many there are.
        classes: in the order of their numbers; () = the source gives numbers.
        count: how many classes there are; 0 = as many as are named, or any number.
    Raises:
        UserError: another count than that of the names.
    """

    def __init__(
        self,
        label: str,
        sizes: Sizes,
        tokenizer: Any = None,
        *,
        key: str = "",
        classes: Sequence[str | int] = (),
        count: int = 0,
    ):
        self._label, self._key, self._classes, self._count = label, key or label, tuple(classes), count
        if classes and count not in (0, len(classes)):
            raise UserError(f"data.fields.{label} names {len(classes)} classes, and count is {count}; make them agree")

    def arrays(self) -> dict[str, Array]:
        return {self._label: Array((), np.int32)}

    def make(self, drawn: Drawn, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Raises UserError: the example has no class, or one that is not among `classes`."""
        value = functools.reduce(_part, self._key.split("."), drawn.example)
        number = self._number(value)
        if number is None:
            below = f" below {self._count}" if self._count else ""
            known = f"one of {', '.join(map(str, self._classes))}" if self._classes else f"a whole number{below}"
            raise UserError(
                f"{drawn.example['id']} has the {self._key} {value!r}, data.fields.{self._label} reads {known}"
            )
        return {self._label: np.int32(number)}

    def _number(self, value: Any) -> int | None:
        """The number of a class; None if it has none."""
        if self._classes:
            return self._classes.index(value) if value in self._classes and not isinstance(value, bool) else None
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
            return None
        return None if self._count and value >= self._count else int(value)


def _part(value: Any, part: str) -> Any:
    """What a mapping or a list holds under a name or a number, or its length under "count"; None if it holds none."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if part == "count":
            return len(value)
        return value[int(part)] if part.isdecimal() and int(part) < len(value) else None
    return value.get(part) if isinstance(value, Mapping) else None
