"""What bfloat16 must not compute, read off the traced step of every recipe; nothing is compiled or run."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest

from configs import recipes
from maskvlm_jax.runtime import sharding
from maskvlm_jax.training import build
from tests.conftest import toy_config

MOST_SUMMED = 4_096  # elements that one sum in bfloat16 may have


def equations(jaxpr) -> Iterator:
    """All equations, those of loops, branches and custom derivatives too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for body in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(body, "jaxpr", body)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def long_sums(jaxpr) -> Iterator[str]:
    """Sums in 16 bits of more than `MOST_SUMMED` elements, or of more rows than a table has."""
    for equation in equations(jaxpr):
        before, after = ([variable.aval for variable in side] for side in (equation.invars, equation.outvars))
        if not before or getattr(before[0], "dtype", None) != jnp.bfloat16:
            continue
        name = equation.primitive.name
        if name == "scatter-add":  # the gradient of a look-up: one row of a batch's words may be most of them
            long = before[2].size > before[0].size
        elif name == "cumsum":
            long = before[0].shape[equation.params["axis"]] > MOST_SUMMED
        else:
            long = name == "reduce_sum" and before[0].size > MOST_SUMMED * max(1, after[0].size)
        if long:
            yield f"{name} {before[0].shape} -> {after[0].shape}"


def rounded_products(jaxpr) -> Iterator[str]:
    """Products of float32 factors that a TPU or a GPU would round."""
    for equation in equations(jaxpr):
        if equation.primitive.name == "dot_general":
            wide = all(variable.aval.dtype == jnp.float32 for variable in equation.invars)
            precision = equation.params["precision"]
            if wide and (precision is None or jax.lax.Precision.HIGHEST not in precision):
                yield " x ".join(str(variable.aval.shape) for variable in equation.invars)


@pytest.fixture(scope="module", params=recipes.RECIPES)
def step(request):
    """The traced step of a recipe in bfloat16, at a batch whose positions are more than `MOST_SUMMED`."""
    config = toy_config(f"recipe={request.param}", batch_size=1_024, model__shared__dtype="bfloat16")
    mesh = sharding.make_mesh(data=1, fsdp=1, model=1) if jax.device_count() == 1 else sharding.make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        built = build.build(config, mesh)
        return jax.make_jaxpr(built.step)(*build.described(config, built, mesh)).jaxpr


def test_no_long_sum_is_in_bfloat16(step):
    assert not list(long_sums(step))


def test_what_is_left_in_float32_is_computed_in_full(step):
    """The contrastive space, and heads whose results are compared: float32 on paper alone would help nobody."""
    assert not list(rounded_products(step))


def test_both_are_found_where_they_are():
    wide, narrow = jnp.ones((5_000, 2)), jnp.ones((5_000, 2), jnp.bfloat16)
    loss = lambda bias: jnp.sum(narrow + bias.astype("bfloat16"), dtype=jnp.float32)  # noqa: E731
    assert list(long_sums(jax.make_jaxpr(jax.grad(loss))(jnp.ones(2)).jaxpr))
    table = jnp.ones((10, 2), jnp.bfloat16)
    look_up = lambda table: jnp.sum(table[jnp.zeros(50, int)], dtype=jnp.float32)  # noqa: E731
    assert list(long_sums(jax.make_jaxpr(jax.grad(look_up))(table).jaxpr))
    assert list(long_sums(jax.make_jaxpr(lambda x: jax.lax.cumsum(x))(narrow).jaxpr))
    assert list(rounded_products(jax.make_jaxpr(lambda x: x.T @ x)(wide).jaxpr))
