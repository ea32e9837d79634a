"""GELU, layer normalisation and attention, each with a backward pass of its own.

Autodiff keeps every step of these for the backward pass: five arrays of the hidden width for a GELU, three for a norm,
two of length x length for a softmax. Here each keeps what the products around it keep anyway and computes the rest
again, which on a device that waits for its memory is the faster way too. Numbers are those of the plain formulas, with
float32 inside. Forward-mode differentiation is not supported.
"""

import functools
import math

import jax
import jax.numpy as jnp

HIDDEN_LOGIT = -0.7 * float(jnp.finfo(jnp.float32).max)  # of a key that is not attended to


def _float32(*arrays: jax.Array) -> list[jax.Array]:
    return [x.astype(jnp.float32) for x in arrays]


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


@jax.custom_vjp
def gelu_dense(x_MD: jax.Array, kernel_DE: jax.Array, bias_E: jax.Array) -> jax.Array:
    """gelu(x) W + b; keeps x, not gelu(x), which the derivative has at hand."""
    return gelu(x_MD) @ kernel_DE + bias_E


def _gelu_dense_forward(x_MD, kernel_DE, bias_E):
    return gelu_dense(x_MD, kernel_DE, bias_E), (x_MD, kernel_DE)


def _gelu_dense_backward(kept, gradient_ME):
    x_MD, kernel_DE = kept
    wide, to_gelu = _float32(x_MD, gradient_ME @ kernel_DE.T)
    cdf = _normal_cdf(wide)
    to_x = (to_gelu * _gelu_derivative(wide, cdf)).astype(x_MD.dtype)
    to_bias_E = jnp.sum(gradient_ME, axis=0, dtype=jnp.float32).astype(gradient_ME.dtype)
    return to_x, (wide * cdf).astype(x_MD.dtype).T @ gradient_ME, to_bias_E


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


@jax.custom_vjp
def attend(
    query_BSHK: jax.Array, key_BTHK: jax.Array, value_BTHK: jax.Array, valid_BT: jax.Array | None = None
) -> jax.Array:
    """softmax(Q Kᵀ / sqrt(K)) V of every head (arXiv 1706.03762); keys that are not valid get no weight.

    A row without a valid key attends to all alike. Keeps queries, keys and values; the weights only where
    they are no larger than keys and values, else they are computed again.

    Returns:
        out_BSHK, of the values' type.
    """
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


attend.defvjp(_attend_forward, _attend_backward)
