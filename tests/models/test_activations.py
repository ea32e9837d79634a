"""Activations: values of their formulas, and gradients of autodiff through them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from maskvlm_jax.models.activations import ACTIVATIONS, activate, dense_of_activation
from maskvlm_jax.models.primitives import Product
from tests.models.test_primitives import DTYPES, assert_same, normal

PLAIN = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}
# Written anew in float64, from the formulas of torch's nn.GELU and of CLIP's QuickGELU.
FORMULAS = {
    "gelu": lambda x: x * special.ndtr(x),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
}


def test_every_activation_is_tested():
    assert PLAIN.keys() == FORMULAS.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_are_those_of_the_formula(name):
    x = np.linspace(-8, 8, 401)
    np.testing.assert_allclose(activate(jnp.float32(x), name), FORMULAS[name](x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_gradients_are_those_of_the_plain_formula(name, dtype):
    assert_same(lambda x: activate(x, name), PLAIN[name], [3 * normal(4, 3, 8)], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_dense_layer_after_an_activation_too(name, dtype):
    arguments = [3 * normal(6, 5), normal(5, 3, seed=1), normal(3, seed=2)]
    own = lambda x, w, b: dense_of_activation(x, w, b, Product(dtype, dtype), name)  # noqa: E731
    assert_same(own, lambda x, w, b: PLAIN[name](x) @ w + b, arguments, dtype)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_far_from_zero_nothing_or_all_passes(name):
    x = jnp.array([-1e4, -30.0, -12.0, 0.0, 12.0, 30.0, 1e4])
    np.testing.assert_allclose(activate(x, name), [0, 0, 0, 0, 12, 30, 1e4], atol=1e-6)
    slope = jax.vmap(jax.grad(lambda x: activate(x, name)))(x)
    np.testing.assert_allclose(slope, [0, 0, 0, 0.5, 1, 1, 1], atol=1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_x_alone_is_kept(name):
    _, pull = jax.vjp(lambda x: activate(x, name), normal(4, 3))
    assert [x.shape for x in jax.tree.leaves(pull)] == [(4, 3)]
