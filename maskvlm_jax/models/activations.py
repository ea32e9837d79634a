"""Activations of feed-forward layers, alone and before a dense layer, with backward passes of their own.

    gelu         x Φ(x), Φ the exact normal distribution function: ViT, BERT, RoBERTa (arXiv 1606.08415)
    gelu_tanh    x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2: the paper's approximation, as GPT-2 and SigLIP
    quick_gelu   x σ(1.702 x): its other approximation, as CLIP (arXiv 2103.00020)

Each is x g(x) with a gate g between 0 and 1. What is kept for the backward pass is x alone; see `primitives.py`.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maskvlm_jax.models.primitives import Product, dense, dense_backward, float32


class _Gated(NamedTuple):
    """x g(x): gate(x) is g, derivative(x, g(x)) that of the whole; in float32."""

    gate: Callable[[jax.Array], jax.Array]
    derivative: Callable[[jax.Array, jax.Array], jax.Array]


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_derivative(x: jax.Array, cdf: jax.Array) -> jax.Array:
    return cdf + x * jnp.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))


_TANH_SCALE, _TANH_CUBE = math.sqrt(2.0 / math.pi), 0.044715


def _tanh_gate(x: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jnp.tanh(_TANH_SCALE * (x + _TANH_CUBE * x * x * x)))


def _gelu_tanh_derivative(x: jax.Array, gate: jax.Array) -> jax.Array:
    # (1 - tanh²) / 2 is 2 g (1 - g).
    return gate + x * 2.0 * gate * (1.0 - gate) * _TANH_SCALE * (1.0 + 3.0 * _TANH_CUBE * x * x)


_QUICK = 1.702


def _quick_gelu_derivative(x: jax.Array, gate: jax.Array) -> jax.Array:
    return gate + _QUICK * x * gate * (1.0 - gate)


ACTIVATIONS = {
    "gelu": _Gated(_normal_cdf, _gelu_derivative),
    "gelu_tanh": _Gated(_tanh_gate, _gelu_tanh_derivative),
    "quick_gelu": _Gated(lambda x: jax.nn.sigmoid(_QUICK * x), _quick_gelu_derivative),
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def activate(x: jax.Array, name: str) -> jax.Array:
    """The activation `name` of x, of the type of x; keeps x."""
    (wide,) = float32(x)
    return (wide * ACTIVATIONS[name].gate(wide)).astype(x.dtype)


def _activate_backward(name: str, x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    wide, gradient = float32(x, gradient)
    gate, derivative = ACTIVATIONS[name]
    return ((gradient * derivative(wide, gate(wide))).astype(x.dtype),)


activate.defvjp(lambda x, name: (activate(x, name), x), _activate_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def dense_of_activation(
    x_MD: jax.Array, kernel_DE: jax.Array, bias_E: jax.Array, product: Product, name: str
) -> jax.Array:
    """activation(x) W + b; keeps x, not activation(x), which the derivative has at hand."""
    return dense(activate(x_MD, name), kernel_DE, bias_E, product)


def _dense_of_activation_forward(x_MD, kernel_DE, bias_E, product, name):
    return dense_of_activation(x_MD, kernel_DE, bias_E, product, name), (x_MD, kernel_DE, bias_E)


def _dense_of_activation_backward(product, name, kept, gradient_ME):
    x_MD, *parameters = kept
    (wide,) = float32(x_MD)
    gate, derivative = ACTIVATIONS[name]
    gate_MD = gate(wide)
    active_MD = (wide * gate_MD).astype(x_MD.dtype)
    to_active, to_kernel_DE, to_bias_E = dense_backward(product, (active_MD, *parameters), gradient_ME)
    to_x = to_active.astype(jnp.float32) * derivative(wide, gate_MD)
    return to_x.astype(x_MD.dtype), to_kernel_DE, to_bias_E


dense_of_activation.defvjp(_dense_of_activation_forward, _dense_of_activation_backward)
