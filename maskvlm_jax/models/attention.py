"""Attention with a backward pass of its own, see `primitives.py`, or by cuDNN, and which positions are attended to."""

import dataclasses

import jax
import jax.numpy as jnp

from maskvlm_jax.models.primitives import Dtype

HIDDEN_LOGIT = -0.7 * float(jnp.finfo(jnp.float32).max)  # of a key that is not attended to


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


# Which positions are attended to: (B, T) booleans, the same for all queries; (B, S, T), of each query its own; the
# first ones; or all. B may be 1.
Valid = jax.Array | First | None


def causal(length: int) -> jax.Array:
    """valid_BST of a sequence that is read from its beginning: no position attends to one behind it."""
    return jnp.tril(jnp.ones((1, length, length), bool))


def of_queries(valid_BT: Valid, read_BR: jax.Array | None) -> Valid:
    """What the queries at positions `read_BR` attend to, all if None."""
    if read_BR is None or not isinstance(valid_BT, jax.Array) or valid_BT.ndim == 2:
        return valid_BT
    valid_BST = jnp.broadcast_to(valid_BT, (read_BR.shape[0], *valid_BT.shape[1:]))
    return jnp.take_along_axis(valid_BST, read_BR[:, :, None], axis=1)


def hide(logits_BHST: jax.Array, valid_BT: jax.Array | None) -> jax.Array:
    """Logits of which those of keys that are not attended to get no weight."""
    if valid_BT is None:
        return logits_BHST
    valid_BHST = valid_BT[:, None, None] if valid_BT.ndim == 2 else valid_BT[:, None]
    return jnp.where(valid_BHST, logits_BHST, HIDDEN_LOGIT)


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


def weights(query_BSHK: jax.Array, key_BTHK: jax.Array, valid_BT: Valid = None) -> jax.Array:
    """weights_BHST = softmax(Q Kᵀ / sqrt(K)) in float32: how much each position attends to each key."""
    if isinstance(valid_BT, First):
        valid_BT = valid_BT.mask(key_BTHK.shape[1])
    return jax.nn.softmax(_logits(_by_head(query_BSHK), _by_head(key_BTHK), valid_BT))


def weighted(weights_BHST: jax.Array, value_BTHK: jax.Array) -> jax.Array:
    """out_BSHK, what `attend` makes of values by its weights, by these."""
    return jnp.einsum("bhst,bthk->bshk", weights_BHST.astype(value_BTHK.dtype), value_BTHK)


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
    return hide(logits_BHST * query_BHSK.shape[-1] ** -0.5, valid_BT)


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
