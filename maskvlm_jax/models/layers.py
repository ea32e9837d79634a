"""Dense, attention, feed-forward and layer norm: what blocks are made of. Every attention is computed here."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models import attention, primitives
from maskvlm_jax.models.activations import dense_of_activation
from maskvlm_jax.models.attention import First, Valid
from maskvlm_jax.models.primitives import Dtype, spread


def kernel_init(std: float | None) -> Callable:
    """Truncated normal of standard deviation `std`, as ViT and BERT; 0: Xavier uniform, as MAE; None: zeros."""
    if std is None:
        return nnx.initializers.zeros_init()
    return nnx.initializers.truncated_normal(std) if std else nnx.initializers.xavier_uniform()


TOKEN_STD = 0.02


def token_init() -> Callable:
    """Initialiser of learned tokens, embeddings and positions: truncated normal."""
    return nnx.initializers.truncated_normal(TOKEN_STD)


class Dense(nnx.Module):
    """x W + b over the last axis.

    The leading axes are flattened first: XLA's CPU backend runs the weight gradient of a rank-3 product at a fraction
    of the speed of the rank-2 one; on TPU and GPU the reshape costs nothing.

    Args:
        dtype: of the factors.
        out: of the result; `dtype` if None.
        exact: float32 factors in full, where TPUs and GPUs would round them: for small heads, whose results are
            compared with each other or divided by a small temperature.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        init_std: float | None = 0.02,
        dtype: Dtype = "float32",
        out: Dtype | None = None,
        exact: bool = False,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(kernel_init(init_std)(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))
        self.dtype = dtype
        self.product = primitives.Product(dtype, out or dtype, jax.lax.Precision.HIGHEST if exact else None)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self._apply(primitives.dense, x)

    def of_activation(self, x: jax.Array, name: str) -> jax.Array:
        """activation(x) W + b, see `activations`."""
        return self._apply(dense_of_activation, x, name)

    def _apply(self, product: Callable, x: jax.Array, *options: str) -> jax.Array:
        flat = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        flat = product(flat, self.kernel[...], self.bias[...], self.product, *options)
        return flat.reshape(*x.shape[:-1], flat.shape[-1])


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of x and scales the rest up; the identity where `key` is None."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def take(x_BSD: jax.Array, read_BR: jax.Array | None) -> jax.Array:
    """The positions `read_BR` of each sequence, (B, R, D); all of them where `read_BR` is None."""
    if read_BR is None:
        return x_BSD
    return jnp.take_along_axis(x_BSD, read_BR[:, :, None], axis=1)


def interleave(arrays: Sequence[jax.Array], axis: int = 0) -> jax.Array:
    """Rows of several arrays example by example: row 0 of each, then row 1 of each.

    Where the rows are split over devices no row leaves its own, as it would in a concatenation.
    """
    shape = list(arrays[0].shape)
    shape[axis] *= len(arrays)
    return jnp.stack(arrays, axis + 1).reshape(shape)


def separate(x: jax.Array, count: int) -> list[jax.Array]:
    """The `count` arrays whose rows were interleaved."""
    cut = x.reshape(-1, count, *x.shape[1:])
    return [cut[:, i] for i in range(count)]


def take_rows(x: jax.Array, ids_P: jax.Array, axis: int = 0, shares: int = 1) -> jax.Array:
    """The rows `ids_P` of x, repeats allowed.

    Args:
        shares: with more than one, rows and ids are cut into as many equal parts, and every id is a row of its own
            part: nothing is read of another.
    """
    if shares == 1:
        return jnp.take(x, ids_P, axis)
    size = x.shape[axis] // shares
    parts = x.reshape(*x.shape[:axis], shares, size, *x.shape[axis + 1 :])
    own_SP = ids_P.reshape(shares, -1) - size * jnp.arange(shares)[:, None]
    found = jax.vmap(lambda part, ids: jnp.take(part, ids, axis), in_axes=(axis, 0), out_axes=axis)(parts, own_SP)
    return found.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


class Positions(NamedTuple):
    """Positions of each example, in order: a static count, rows that have fewer are padded with invalid ones."""

    ids_BM: jax.Array
    valid_BM: jax.Array


def restore(visible_BUD: jax.Array, visible: Positions, length: int, mask_token: jax.Array) -> jax.Array:
    """(B, length, D): `visible_BUD` at the positions it was taken from, the mask token at all others."""
    rows = jnp.arange(visible_BUD.shape[0])[:, None]
    shape = (visible_BUD.shape[0], length, visible_BUD.shape[2])
    slots_BSD = spread(mask_token, shape, visible_BUD.dtype)
    # A padded entry is written outside the sequence, where it is dropped.
    ids_BU = jnp.where(visible.valid_BM, visible.ids_BM, length)
    return slots_BSD.at[rows, ids_BU].set(visible_BUD, mode="drop")


class Attention(nnx.Module):
    """Multi-head attention: of a sequence to itself, or to keys and values that were projected before.

    Of another sequence they are projected by a call of their own, so that one that is attended to more than once, by
    several streams or as a hard negative, is projected once.
    """

    def __init__(self, width: int, *, heads: int, init_std: float, dtype: Dtype, rngs: nnx.Rngs):
        dense = {"init_std": init_std, "dtype": dtype, "rngs": rngs}
        self.query = Dense(width, width, **dense)
        self.key = Dense(width, width, **dense)
        self.value = Dense(width, width, **dense)
        self.out = Dense(width, width, **dense)
        self.heads = heads

    def project(self, context_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values of a sequence, each (B, T, H, K)."""
        return self._split(self.key(context_BTD)), self._split(self.value(context_BTD))

    def __call__(
        self,
        x_BSD: jax.Array,
        key_BTHK: jax.Array,
        value_BTHK: jax.Array,
        valid_BT: Valid = None,
        added_BHST: jax.Array | None = None,
    ) -> jax.Array:
        """Attends from x to the keys that are valid (all of them where `valid_BT` is None); float32 softmax.

        Args:
            added_BHST: is added to the weights: zeros, by which what follows can be differentiated.
        """
        if added_BHST is None:
            out_BSHK = attention.attend(self._split(self.query(x_BSD)), key_BTHK, value_BTHK, valid_BT)
        else:
            out_BSHK = attention.weighted(self.weights(x_BSD, key_BTHK, valid_BT) + added_BHST, value_BTHK)
        return self.out(out_BSHK.reshape(x_BSD.shape))

    def to_itself(
        self,
        x_BSD: jax.Array,
        valid_BS: Valid = None,
        read_BR: jax.Array | None = None,
        added_BHRS: jax.Array | None = None,
    ) -> jax.Array:
        """Attends from the positions `read_BR` of x, all if None, to all of x that is valid; `added_BHRS` as above."""
        x_BRD, valid_BS = take(x_BSD, read_BR), attention.of_queries(valid_BS, read_BR)
        if added_BHRS is not None:
            return self(x_BRD, *self.project(x_BSD), valid_BS, added_BHRS)
        if few_queries(x_BRD.shape[1], x_BSD.shape[1], heads=self.heads, width=x_BSD.shape[2]):
            return self._without_keys(x_BRD, x_BSD, valid_BS)
        return self(x_BRD, *self.project(x_BSD), valid_BS)

    def weights(self, x_BSD: jax.Array, key_BTHK: jax.Array, valid_BT: Valid = None) -> jax.Array:
        """weights_BHST: how much each position of x attends to each key; float32."""
        return attention.weights(self._split(self.query(x_BSD)), key_BTHK, valid_BT)

    def _without_keys(self, x_BRD: jax.Array, context_BTD: jax.Array, valid_BT: Valid) -> jax.Array:
        """The same by q · (W c + b) = (Wᵀ q) · c + q · b and sum_t p_t (W c_t + b) = W (sum_t p_t c_t) + b.

        Queries are carried to the sequence, which is projected to no keys and values. The softmax does not see q · b.
        """
        dtype = self.query.dtype
        if isinstance(valid_BT, First):
            valid_BT = valid_BT.mask(context_BTD.shape[1])
        key_DHK, value_DHK = (self._split(dense.kernel[...].astype(dtype)) for dense in (self.key, self.value))
        query_BRHK, context_BTD = self._split(self.query(x_BRD)), context_BTD.astype(dtype)
        lifted_BHRD = jnp.einsum("brhk,dhk->bhrd", query_BRHK, key_DHK)
        logits_BHRT = jnp.einsum("bhrd,btd->bhrt", lifted_BHRD, context_BTD, preferred_element_type=jnp.float32)
        logits_BHRT = attention.hide(logits_BHRT * query_BRHK.shape[-1] ** -0.5, valid_BT)
        weights_BHRT = jax.nn.softmax(logits_BHRT).astype(dtype)
        mean_BHRD = jnp.einsum("bhrt,btd->bhrd", weights_BHRT, context_BTD)
        out_BRD = jnp.einsum("bhrd,dhk->brhk", mean_BHRD, value_DHK).reshape(x_BRD.shape)
        return self.out(out_BRD + spread(self.value.bias[...], out_BRD.shape, out_BRD.dtype))

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.heads, -1)


def few_queries(queries: int, keys: int, *, heads: int, width: int) -> bool:
    """Whether attention costs at most half where it carries queries to the sequence and projects no key or value."""
    return 2 * queries * (width + heads * keys) <= keys * (width + queries)


class FeedForward(nnx.Module):
    """Two dense layers with an activation between them: the exact (erf) GELU, as ViT, BERT and RoBERTa, or another."""

    def __init__(
        self, width: int, *, ratio: int, activation: str = "gelu", init_std: float, dtype: Dtype, rngs: nnx.Rngs
    ):
        self.up = Dense(width, ratio * width, init_std=init_std, dtype=dtype, rngs=rngs)
        self.down = Dense(ratio * width, width, init_std=init_std, dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        return self.down.of_activation(self.up(x_BSD), self.activation)


class LayerNorm(nnx.Module):
    """Layer normalisation with float32 statistics computed in two passes."""

    def __init__(self, width: int, *, eps: float, dtype: Dtype):
        self.scale, self.bias = nnx.Param(jnp.ones((width,), jnp.float32)), nnx.Param(jnp.zeros((width,), jnp.float32))
        self.eps, self.dtype = eps, dtype

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        return primitives.layer_norm(x_BSD, self.scale[...], self.bias[...], self.eps, self.dtype)
