"""FLOPs of a program that JAX has traced, of any recipe; what `plan.flops` counts is held against them."""

import math
from collections.abc import Iterator
from typing import Any


def traced_flops(jaxpr: Any) -> float:
    """FLOPs of the matrix products of a traced function, every loop as often as it runs.

    What is computed anew under `remat` counts. Of branches the dearest counts; a loop of unknown length counts once.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            total += 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracted)
            continue
        inner = [traced_flops(body) for body in _bodies(equation.params)]
        if equation.primitive.name == "cond":
            total += max(inner)
        else:
            total += sum(inner) * equation.params.get("length", 1)
    return total


def _bodies(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs that an equation holds."""
    for value in params.values():
        for body in value if isinstance(value, tuple | list) else [value]:
            if hasattr(body, "eqns"):
                yield body
