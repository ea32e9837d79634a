"""Values that blocks hand out beside their output: a router's shares of the tokens, for a loss that balances them.

A block calls `hand_out("load", value)`. Whoever wants the values calls the model inside `collecting`; where nobody
does, nothing is kept, and the compiled program is the one without them.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

Values = dict[str, list[jax.Array]]  # name -> arrays, each with an axis of layers first

_collected: ContextVar[Values | None] = ContextVar("collected", default=None)


@contextlib.contextmanager
def collecting(wanted: bool = True) -> Iterator[Values]:
    """What blocks hand out inside. Where it is not wanted nothing is kept, even if an outer caller collects."""
    values: Values = {}
    token = _collected.set(values if wanted else None)
    try:
        yield values
    finally:
        _collected.reset(token)


def wanted() -> bool:
    """Whether somebody reads what is handed out, so that a block may compute more for it than its output needs."""
    return _collected.get() is not None


def hand_out(name: str, value: jax.Array) -> None:
    """A value of a block, of the same shape in every block of a stack."""
    if (values := _collected.get()) is not None:
        values.setdefault(name, []).append(value[None])


@contextlib.contextmanager
def of_layer() -> Iterator[Values]:
    """What is handed out inside a function that JAX traces by itself: it must leave it as a result, see `pass_on`."""
    with collecting(wanted()) as values:
        yield values


def pass_on(values: Values) -> None:
    """What `of_layer` gave of one layer, or of several."""
    if (collected := _collected.get()) is not None:
        for name, arrays in values.items():
            collected.setdefault(name, []).extend(arrays)
