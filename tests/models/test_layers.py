"""Rows taken, interleaved and separated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskvlm_jax.models.layers import interleave, separate, take_rows


def test_interleaved_rows_are_those_of_each_example_together_and_come_apart_again():
    a, b = jnp.arange(6.0).reshape(3, 2), -jnp.arange(6.0).reshape(3, 2)
    both = interleave([a, b])
    np.testing.assert_array_equal(both[:, 0], [0, 0, 2, -2, 4, -4])
    for ours, theirs in zip(separate(both, 2), (a, b), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_interleaving_along_a_later_axis_leaves_the_first():
    x = jnp.arange(12).reshape(2, 3, 2)
    np.testing.assert_array_equal(interleave([x, x + 100], axis=1)[1, :, 0], [6, 106, 8, 108, 10, 110])


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_of_shares_are_the_rows_by_their_numbers(axis):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 8, 3)))
    ids = jnp.asarray(np.repeat([0, 2, 4, 6], 3) + rng.integers(2, size=12))  # four shares of two rows, three ids each
    np.testing.assert_array_equal(take_rows(x, ids, axis, shares=4), jnp.take(x, ids, axis))
    grads = jax.grad(lambda x: jnp.sum(take_rows(x, ids, axis, shares=4) ** 2))(x)
    np.testing.assert_allclose(grads, jax.grad(lambda x: jnp.sum(jnp.take(x, ids, axis) ** 2))(x))
