"""Dense layers, GELU, layer normalisation and attention, each with a backward pass of its own.

Autodiff keeps every step of these for the backward pass: five arrays of the hidden width for a GELU, three for a norm,
two of length x length for a softmax. Here each keeps what the products around it keep anyway and computes the rest
again, which on a device that waits for its memory is the faster way too. Numbers are those of the plain formulas, with
float32 inside: in bfloat16, a sum over the tens of thousands of positions of a batch would lose the gradient of a bias.
Forward-mode differentiation is not supported.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

Dtype = jnp.dtype | str

HIDDEN_LOGIT = -0.7 * float(jnp.finfo(jnp.float32).max)  # of a key that is not attended to


def _float32(*arrays: jax.Array) -> list[jax.Array]:
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


def _dense_backward(product, kept, gradient_ME):
    x_MD, kernel_DE, bias_E = kept
    to_x = product(gradient_ME, kernel_DE, x_MD.dtype, over=(1, 1))
    to_bias_E = jnp.sum(gradient_ME, axis=0, dtype=jnp.float32).astype(bias_E.dtype)
    return to_x, product(x_MD, gradient_ME, kernel_DE.dtype, over=(0, 0)), to_bias_E


dense.defvjp(_dense_forward, _dense_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def spread(x: jax.Array, shape: tuple[int, ...], dtype: Dtype) -> jax.Array:
    """x as `dtype`, broadcast to `shape`: a token or positions for every example. Its gradient is summed in float32."""
    return jnp.broadcast_to(x.astype(dtype), shape)


def _spread_backward(shape, dtype, x, gradient):
    lead = len(shape) - x.ndim
    axes = (*range(lead), *(lead + i for i, size in enumerate(x.shape) if size != shape[lead + i]))
    return (jnp.sum(gradient, axis=axes, dtype=jnp.float32).reshape(x.shape).astype(x.dtype),)


spread.defvjp(lambda x, shape, dtype: (spread(x, shape, dtype), x), _spread_backward)


# --- GELU ------------------------------------------------------------------------------------------------------------


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_derivative(x: jax.Array, cdf: jax.Array) -> jax.Array:
    return cdf + x * jnp.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x Φ(x) with the exact normal distribution function, as ViT, BERT and RoBERTa (arXiv 1606.08415); keeps x."""
    (wide,) = _float32(x)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _gelu_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    wide, gradient = _float32(x, gradient)
    return ((gradient * _gelu_derivative(wide, _normal_cdf(wide))).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def gelu_dense(x_MD: jax.Array, kernel_DE: jax.Array, bias_E: jax.Array, product: Product) -> jax.Array:
    """gelu(x) W + b; keeps x, not gelu(x), which the derivative has at hand."""
    return dense(gelu(x_MD), kernel_DE, bias_E, product)


def _gelu_dense_forward(x_MD, kernel_DE, bias_E, product):
    return gelu_dense(x_MD, kernel_DE, bias_E, product), (x_MD, kernel_DE, bias_E)


def _gelu_dense_backward(product, kept, gradient_ME):
    x_MD, *parameters = kept
    (wide,) = _float32(x_MD)
    cdf = _normal_cdf(wide)
    gelu_MD = (wide * cdf).astype(x_MD.dtype)
    to_gelu, to_kernel_DE, to_bias_E = _dense_backward(product, (gelu_MD, *parameters), gradient_ME)
    return (to_gelu.astype(jnp.float32) * _gelu_derivative(wide, cdf)).astype(x_MD.dtype), to_kernel_DE, to_bias_E


gelu_dense.defvjp(_gelu_dense_forward, _gelu_dense_backward)


# --- layer normalisation ---------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array, eps: float, dtype: jnp.dtype | str) -> jax.Array:
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last axis (arXiv 1607.06450), as `dtype`.

    Keeps x and the two statistics of each row.
    """
    return _layer_norm_forward(x, scale_D, bias_D, eps, dtype)[0]


def _layer_norm_forward(x, scale_D, bias_D, eps, dtype):
    (wide,) = _float32(x)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    centred = wide - mean
    rate = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    return (centred * (rate * scale_D) + bias_D).astype(dtype), (x, mean, rate, scale_D)


def _layer_norm_backward(eps, dtype, kept, gradient):
    x, mean, rate, scale_D = kept
    wide, gradient = _float32(x, gradient)
    unit = (wide - mean) * rate
    scaled = gradient * scale_D
    shares = jnp.mean(scaled, axis=-1, keepdims=True), jnp.mean(scaled * unit, axis=-1, keepdims=True)
    to_x = rate * (scaled - shares[0] - unit * shares[1])
    rows = tuple(range(x.ndim - 1))
    return to_x.astype(x.dtype), jnp.sum(gradient * unit, axis=rows), jnp.sum(gradient, axis=rows)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


# --- attention -------------------------------------------------------------------------------------------------------


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class First:
    """Which positions are real: the first `count`, a number for all examples or one for each, (B,)."""

    count: int | jax.Array

    @staticmethod
    def of(valid_BT: jax.Array) -> "First":
        """Of booleans that are True first, as those of padded captions."""
        return First(jnp.sum(valid_BT, axis=1, dtype=jnp.int32))

    def mask(self, length: int) -> jax.Array:
        """valid_BT, or of a number (1, T)."""
        return jnp.arange(length) < jnp.reshape(jnp.asarray(self.count), (-1, 1))

    def tree_flatten(self) -> tuple[tuple[jax.Array, ...], int | None]:
        return ((), self.count) if isinstance(self.count, int) else ((self.count,), None)

    @classmethod
    def tree_unflatten(cls, count: int | None, leaves: tuple[jax.Array, ...]) -> "First":
        return cls(leaves[0] if count is None else count)


Valid = jax.Array | First | None  # which positions are real: (B, T) booleans, the first ones, or all


def attend(query_BSHK: jax.Array, key_BTHK: jax.Array, value_BTHK: jax.Array, valid_BT: Valid = None) -> jax.Array:
    """softmax(Q Kᵀ / sqrt(K)) V of every head (arXiv 1706.03762); keys that are not valid get no weight.

    A row without a valid key attends to all alike. Keeps queries, keys and values; the weights only where
    they are no larger than keys and values, else they are computed again.

    Returns:
        out_BSHK, of the values' type.
    """
    if not isinstance(valid_BT, jax.Array) and fused_by_cudnn(query_BSHK.dtype, *key_BTHK.shape[1::2]):
        return _attend_by_cudnn(query_BSHK, key_BTHK, value_BTHK, valid_BT)
    if isinstance(valid_BT, First):
        valid_BT = valid_BT.mask(key_BTHK.shape[1])
    return _attend(query_BSHK, key_BTHK, value_BTHK, valid_BT)


FEWEST_FUSED_KEYS = 64


def compute_capability() -> float:
    """The generation of the NVIDIA GPU that programs are compiled for; 0 where it is another device."""
    try:
        return float(getattr(jax.local_devices()[0], "compute_capability", 0.0))
    except ValueError:  # AMD's are names
        return 0.0


def fused_by_cudnn(dtype: Dtype, keys: int, size: int) -> bool:
    """Whether cuDNN computes attention over so many keys of this size, in one kernel that writes no weights.

    It does so in 16 bits on NVIDIA's GPUs since Ampere. Over few keys the weights are small; where the plain products
    are as fast has not been measured.
    """
    return (
        compute_capability() >= 8.0
        and jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
        and keys >= FEWEST_FUSED_KEYS
        and size % 8 == 0
        and size <= 128
    )


def with_even_length(x_BSD: jax.Array, heads: int) -> tuple[jax.Array, First | None]:
    """x as cuDNN's attention reads it without a copy, and which of its positions are real.

    JAX takes no odd length there where gradients are wanted, and a picture's class token makes one: a position of zeros
    is added at the end. Elsewhere x stays as it is.
    """
    length, width = x_BSD.shape[1:]
    if length % 2 == 0 or not fused_by_cudnn(x_BSD.dtype, length, width // heads):
        return x_BSD, None
    return _padded_to_even(x_BSD), First(length)


def _padded_to_even(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), *[(0, 0)] * (x.ndim - 2)))


def _attend_by_cudnn(
    query_BSHK: jax.Array, key_BTHK: jax.Array, value_BTHK: jax.Array, valid: First | None
) -> jax.Array:
    (rows, queries), keys = query_BSHK.shape[:2], key_BTHK.shape[1]
    even = [_padded_to_even(x) for x in (query_BSHK, key_BTHK, value_BTHK)]
    lengths = None
    if valid is not None or keys % 2:
        # Of none at all cuDNN would make no numbers.
        lengths = jnp.maximum(jnp.broadcast_to(keys if valid is None else valid.count, (rows,)), 1).astype(jnp.int32)
    out = jax.nn.dot_product_attention(*even, key_value_seq_lengths=lengths, implementation="cudnn")
    return out[:, :queries]


@jax.custom_vjp
def _attend(query_BSHK: jax.Array, key_BTHK: jax.Array, value_BTHK: jax.Array, valid_BT: jax.Array | None) -> jax.Array:
    return _attend_forward(query_BSHK, key_BTHK, value_BTHK, valid_BT)[0]


def _logits(query_BHSK: jax.Array, key_BHTK: jax.Array, valid_BT: jax.Array | None) -> jax.Array:
    logits_BHST = jnp.einsum("bhsk,bhtk->bhst", query_BHSK, key_BHTK, preferred_element_type=jnp.float32)
    logits_BHST *= query_BHSK.shape[-1] ** -0.5
    return logits_BHST if valid_BT is None else jnp.where(valid_BT[:, None, None], logits_BHST, HIDDEN_LOGIT)


def _keeps_weights(key_BHTK: jax.Array) -> bool:
    """Whether the weights of a query are no more numbers than a key and a value of it."""
    return key_BHTK.shape[2] <= 2 * key_BHTK.shape[3]


def _by_head(x: jax.Array) -> jax.Array:
    """(B, S, H, K) to (B, H, S, K) and back."""
    return jnp.swapaxes(x, 1, 2)


def _attend_forward(query_BSHK, key_BTHK, value_BTHK, valid_BT):
    query, key, value = (_by_head(x) for x in (query_BSHK, key_BTHK, value_BTHK))
    logits_BHST = _logits(query, key, valid_BT)
    top = jnp.max(logits_BHST, axis=-1, keepdims=True)
    weights_BHST = jnp.exp(logits_BHST - top)
    total = jnp.sum(weights_BHST, axis=-1, keepdims=True)
    weights_BHST = (weights_BHST / total).astype(value.dtype)
    out = jnp.einsum("bhst,bhtk->bhsk", weights_BHST, value)
    kept = weights_BHST if _keeps_weights(key) else top + jnp.log(total)
    return _by_head(out), (query, key, value, valid_BT, kept)


def _attend_backward(kept, gradient_BSHK):
    query, key, value, valid_BT, weights = kept
    gradient = _by_head(gradient_BSHK)
    if not _keeps_weights(key):  # then the logarithm of their denominator was kept
        weights = jnp.exp(_logits(query, key, valid_BT) - weights).astype(value.dtype)
    to_value_BTHK = jnp.einsum("bhst,bshk->bthk", weights, gradient_BSHK)
    to_weights = jnp.einsum("bhsk,bhtk->bhst", gradient, value, preferred_element_type=jnp.float32)
    mean = jnp.sum(weights * to_weights, axis=-1, keepdims=True)
    to_logits = (weights * (to_weights - mean) * query.shape[-1] ** -0.5).astype(query.dtype)
    to_query = jnp.einsum("bhst,bhtk->bhsk", to_logits, key)
    to_key_BTHK = jnp.einsum("bhst,bshk->bthk", to_logits, _by_head(query))
    return _by_head(to_query), to_key_BTHK, to_value_BTHK, None


_attend.defvjp(_attend_forward, _attend_backward)
