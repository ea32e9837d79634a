"""Dense layers, what is spread over a batch, and layer normalisation, each with a backward pass of its own.

Autodiff keeps every step of these, of GELU (`activations.py`) and of attention (`attention.py`) for the backward pass:
five arrays of the hidden width for a GELU, three for a norm, two of length x length for a softmax. Here each keeps what
the products around it keep anyway and computes the rest again, which on a device that waits for its memory is the
faster way too. Numbers are those of the plain formulas, with float32 inside: in bfloat16, a sum over the tens of
thousands of positions of a batch would lose the gradient of a bias. Forward-mode differentiation is not supported.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

Dtype = jnp.dtype | str


def float32(*arrays: jax.Array) -> list[jax.Array]:
    """The arrays in float32."""
    return [x.astype(jnp.float32) for x in arrays]


# --- dense layers and what is spread over a batch --------------------------------------------------------------------


class Product(NamedTuple):
    """How a product is computed.

    dtype: of its factors; out: of its result, which a device sums up to in float32 whatever it is; precision: of
    float32 factors, which TPUs and GPUs round to fewer bits where nothing is asked.
    """

    dtype: Dtype
    out: Dtype
    precision: jax.lax.Precision | None = None

    def __call__(
        self, left: jax.Array, right: jax.Array, out: Dtype | None = None, *, over: tuple[int, int] = (1, 0)
    ) -> jax.Array:
        """left @ right of matrices, summed over an axis of each.

        A transposed factor is told by its axis: where a kernel is split over devices, its transpose would be gathered
        beside it.
        """
        factors = left.astype(self.dtype), right.astype(self.dtype)
        axes = (((over[0],), (over[1],)), ((), ()))
        return jax.lax.dot_general(*factors, axes, precision=self.precision, preferred_element_type=out or self.out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def dense(x_MD: jax.Array, kernel_DE: jax.Array, bias_E: jax.Array, product: Product) -> jax.Array:
    """x W + b. The gradients of W and b are of their own type: float32, whatever the factors are."""
    return product(x_MD, kernel_DE) + bias_E.astype(product.out)


def _dense_forward(x_MD, kernel_DE, bias_E, product):
    return dense(x_MD, kernel_DE, bias_E, product), (x_MD, kernel_DE, bias_E)


def dense_backward(product, kept, gradient_ME):
    """Gradients of x, W and b from (x, W, b) and the gradient of `dense`."""
    x_MD, kernel_DE, bias_E = kept
    to_x = product(gradient_ME, kernel_DE, x_MD.dtype, over=(1, 1))
    to_bias_E = jnp.sum(gradient_ME, axis=0, dtype=jnp.float32).astype(bias_E.dtype)
    return to_x, product(x_MD, gradient_ME, kernel_DE.dtype, over=(0, 0)), to_bias_E


dense.defvjp(_dense_forward, dense_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def spread(x: jax.Array, shape: tuple[int, ...], dtype: Dtype) -> jax.Array:
    """x as `dtype`, broadcast to `shape`: a token or positions for every example. Its gradient is summed in float32."""
    return jnp.broadcast_to(x.astype(dtype), shape)


def _spread_backward(shape, dtype, x, gradient):
    lead = len(shape) - x.ndim
    axes = (*range(lead), *(lead + i for i, size in enumerate(x.shape) if size != shape[lead + i]))
    return (jnp.sum(gradient, axis=axes, dtype=jnp.float32).reshape(x.shape).astype(x.dtype),)


spread.defvjp(lambda x, shape, dtype: (spread(x, shape, dtype), x), _spread_backward)


# --- layer normalisation ---------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array, eps: float, dtype: jnp.dtype | str) -> jax.Array:
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last axis (arXiv 1607.06450), as `dtype`.

    Keeps x and the two statistics of each row.
    """
    return _layer_norm_forward(x, scale_D, bias_D, eps, dtype)[0]


def _layer_norm_forward(x, scale_D, bias_D, eps, dtype):
    (wide,) = float32(x)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    centred = wide - mean
    rate = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    return (centred * (rate * scale_D) + bias_D).astype(dtype), (x, mean, rate, scale_D)


def _layer_norm_backward(eps, dtype, kept, gradient):
    x, mean, rate, scale_D = kept
    wide, gradient = float32(x, gradient)
    unit = (wide - mean) * rate
    scaled = gradient * scale_D
    shares = jnp.mean(scaled, axis=-1, keepdims=True), jnp.mean(scaled * unit, axis=-1, keepdims=True)
    to_x = rate * (scaled - shares[0] - unit * shares[1])
    rows = tuple(range(x.ndim - 1))
    return to_x.astype(x.dtype), jnp.sum(gradient * unit, axis=rows), jnp.sum(gradient, axis=rows)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)
