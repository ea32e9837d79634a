"""Mixtures of feed-forward layers, the experts, of which each position goes through a few (arXiv 1701.06538).

No expert has a capacity and nothing is dropped; shapes are static all the same. Two ways to the same numbers: through
all experts, of which those that were not chosen count 0, or through those that were chosen, rows sorted by expert.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.activations import ACTIVATIONS, activate
from maskvlm_jax.models.layers import TOKEN_STD, kernel_init
from maskvlm_jax.models.primitives import Dtype, Product, dense, float32
from maskvlm_jax.runtime import sharding

# Times the chosen ones that experts must be before rows are sorted, see `Experts`.
SORTED_FROM = 4
MOST_ROWS = 512  # of a group of sorted rows: more fill a device no better, and more of them are padding


class Router(nnx.Module):
    """r(x) = softmax(W (x + b_m)), m the modality of a position: EVE (arXiv 2308.11971), Eq. 4 and 6; float32."""

    def __init__(self, width: int, experts: int, *, init_std: float, rngs: nnx.Rngs):
        self.kernel = nnx.Param(kernel_init(init_std)(rngs.params(), (width, experts), jnp.float32))
        normal = nnx.initializers.normal(TOKEN_STD)
        self.text_type = nnx.Param(normal(rngs.params(), (width,), jnp.float32))
        self.image_type = nnx.Param(normal(rngs.params(), (width,), jnp.float32))

    def __call__(self, x_BSD: jax.Array, words: int) -> jax.Array:
        """router_BSJ, rows sum to 1; the first `words` positions are words, the others patches."""
        shape = x_BSD.shape[1:]
        is_word_S1 = jnp.arange(shape[0])[:, None] < words
        x_BSD = x_BSD.astype(jnp.float32) + jnp.where(is_word_S1, self.text_type[...], self.image_type[...])
        logits = jnp.matmul(x_BSD.reshape(-1, shape[1]), self.kernel[...], precision=jax.lax.Precision.HIGHEST)
        return jax.nn.softmax(logits).reshape(*x_BSD.shape[:2], -1)


def chosen(router_BSJ: jax.Array, top: int) -> tuple[jax.Array, jax.Array]:
    """weights_BSO, which sum to 1, and ids_BSO of the `top` likeliest experts of each position, the likeliest first.

    The lower of two that are equally likely comes first.
    """
    weights_BSO, ids_BSO = jax.lax.top_k(router_BSJ, top)
    return weights_BSO / jnp.sum(weights_BSO, axis=-1, keepdims=True), ids_BSO


class Kernels(nnx.Module):
    """The dense layer of every expert: kernel (J, inputs, outputs), bias (J, outputs)."""

    def __init__(self, experts: int, inputs: int, outputs: int, *, init_std: float, rngs: nnx.Rngs):
        one = kernel_init(init_std)
        kernels = [one(rngs.params(), (inputs, outputs), jnp.float32) for _ in range(experts)]
        self.kernel, self.bias = nnx.Param(jnp.stack(kernels)), nnx.Param(jnp.zeros((experts, outputs), jnp.float32))


class Experts(nnx.Module):
    """Feed-forward layers y = Σ_e w_e FFN_e(x) over the experts e that were chosen for a position.

    Through all experts costs J / O of the work that counts, in two plain products. Sorted, a position costs what its
    O experts cost, and at most half as much again in rows that fill groups up; but its rows move, and kernels are
    gathered a group at a time. On a CPU sorting costs 14 to 24 % less where experts are twice as many as are chosen,
    and less than half where they are four times as many: from there on rows are sorted (`SORTED_FROM`), below programs
    stay simple. `jax.lax.ragged_dot`, which computes every expert's product of every row there, costs twice as much as
    all experts. On other devices it has not been measured.

    Args:
        width, ratio: of an expert; its hidden layer is `ratio` times as wide.
        experts: their number, J.
    """

    def __init__(
        self,
        width: int,
        experts: int,
        *,
        ratio: int,
        activation: str,
        init_std: float,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        self.up = Kernels(experts, width, ratio * width, init_std=init_std, rngs=rngs)
        self.down = Kernels(experts, ratio * width, width, init_std=init_std, rngs=rngs)
        self.activation, self.dtype = activation, dtype

    def __call__(self, x_BSD: jax.Array, weights_BSO: jax.Array, ids_BSO: jax.Array) -> jax.Array:
        """y_BSD of the experts `ids_BSO` with the weights `weights_BSO`."""
        product = Product(self.dtype, self.dtype)
        parameters = [x[...] for part in (self.up, self.down) for x in (part.kernel, part.bias)]
        sorts = self.up.kernel.shape[0] >= SORTED_FROM * ids_BSO.shape[-1]
        through = functools.partial(through_chosen if sorts else through_all, product, self.activation)

        def run(x_BSD, weights_BSO, ids_BSO, *parameters):
            flat = (x.reshape(-1, x.shape[-1]) for x in (x_BSD.astype(self.dtype), weights_BSO, ids_BSO))
            return through(*flat, *parameters).reshape(x_BSD.shape)

        if not sorts:  # which every device does with its own rows by itself
            return run(x_BSD, weights_BSO, ids_BSO, *parameters)
        return sharding.by_own_rows(run, (x_BSD, weights_BSO, ids_BSO), parameters)


def through_all(
    product: Product,
    activation: str,
    x_MD: jax.Array,
    weights_MO: jax.Array,
    ids_MO: jax.Array,
    up_JDW: jax.Array,
    up_bias_JW: jax.Array,
    down_JWD: jax.Array,
    down_bias_JD: jax.Array,
) -> jax.Array:
    """The experts as one wide layer, Σ_e g_e (a(x U_e) D_e + d_e) = [g ⊙ a(x U)] D + g d, g_e 0 where not chosen."""
    experts, width, hidden = up_JDW.shape
    gate_MJ = jnp.sum(weights_MO[:, :, None] * jax.nn.one_hot(ids_MO, experts, dtype=jnp.float32), axis=1)
    up = jnp.swapaxes(up_JDW, 0, 1).reshape(width, -1)
    active_MJW = activate(dense(x_MD, up, up_bias_JW.reshape(-1), product), activation).reshape(-1, experts, hidden)
    gated_MJW = (active_MJW.astype(jnp.float32) * gate_MJ[:, :, None]).astype(product.dtype)
    down, none = down_JWD.reshape(-1, width), jnp.zeros(width, jnp.float32)
    y_MD = dense(gated_MJW.reshape(len(x_MD), -1), down, none, product)
    return y_MD + jnp.matmul(gate_MJ, down_bias_JD, precision=jax.lax.Precision.HIGHEST).astype(y_MD.dtype)


def through_chosen(
    product: Product,
    activation: str,
    x_MD: jax.Array,
    weights_MO: jax.Array,
    ids_MO: jax.Array,
    up_JDW: jax.Array,
    up_bias_JW: jax.Array,
    down_JWD: jax.Array,
    down_bias_JD: jax.Array,
) -> jax.Array:
    """The experts on the rows that chose them: rows in groups of one expert each, a product a group."""
    groups = grouped(ids_MO.reshape(-1), len(up_JDW))
    rows, top = ids_MO.shape
    x_MOD = jnp.broadcast_to(x_MD[:, None], (rows, top, x_MD.shape[1]))
    x_ZRD = moved(x_MOD.reshape(-1, x_MD.shape[1]), groups.row_ZR, groups.slot_M)
    hidden_ZRW = by_group(x_ZRD.reshape(*groups.row_ZR.shape, -1), up_JDW, up_bias_JW, groups.expert_Z, product, "")
    out_ZRD = by_group(hidden_ZRW, down_JWD, down_bias_JD, groups.expert_Z, product, activation)
    out_MOD = moved(out_ZRD.reshape(-1, x_MD.shape[1]), groups.slot_M, groups.row_ZR).reshape(x_MOD.shape)
    return jnp.sum(out_MOD.astype(jnp.float32) * weights_MO[:, :, None], axis=1).astype(x_MD.dtype)


class Groups(NamedTuple):
    """Rows sorted into groups of R slots that have one expert each; the last groups of an expert are not full.

    expert_Z: of each group. row_ZR: what each slot holds, the number of rows where it holds none. slot_M: where each
    row is, counted through all groups.
    """

    expert_Z: jax.Array
    row_ZR: jax.Array
    slot_M: jax.Array


def grouped(ids_M: jax.Array, experts: int) -> Groups:
    """Groups of the rows whose experts are `ids_M`; as many slots as any choice could need."""
    rows = len(ids_M)
    # Half of what an expert gets where all get as much: at most half as many slots again are empty.
    size = max(1, min(MOST_ROWS, rows // (2 * experts)))
    count = rows // size + experts
    order_M = jnp.argsort(ids_M, stable=True)
    place_M = jnp.zeros(rows, jnp.int32).at[order_M].set(jnp.arange(rows, dtype=jnp.int32), unique_indices=True)
    rows_J = jnp.sum(jax.nn.one_hot(ids_M, experts, dtype=jnp.int32), axis=0)
    groups_J = -(-rows_J // size)
    first_row_J, ends_J = jnp.cumsum(rows_J) - rows_J, jnp.cumsum(groups_J)
    slot_M = size * (ends_J - groups_J)[ids_M] + place_M - first_row_J[ids_M]
    row_ZR = jnp.full(count * size, rows, jnp.int32).at[slot_M].set(jnp.arange(rows, dtype=jnp.int32))
    expert_Z = jnp.minimum(jnp.searchsorted(ends_J, jnp.arange(count), side="right"), experts - 1)
    return Groups(expert_Z, row_ZR.reshape(count, size), slot_M)


@jax.custom_vjp
def moved(x: jax.Array, source: jax.Array, back: jax.Array) -> jax.Array:
    """The rows `source` of x, zeros for a row that there is not; `back` is where each row of x went.

    As no row goes to two places the gradient is moved back, where autodiff would add rows up.
    """
    return jnp.take(x, source.reshape(-1), axis=0, mode="fill", fill_value=0)


def _moved_backward(kept, gradient):
    return moved(gradient, kept, None), None, None


moved.defvjp(lambda x, source, back: (moved(x, source, back), back), _moved_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def by_group(
    x_ZRD: jax.Array, kernel_JDW: jax.Array, bias_JW: jax.Array, expert_Z: jax.Array, product: Product, activation: str
) -> jax.Array:
    """activation(x) W_e + b_e, e the expert of a group; "" = no activation.

    Keeps x: kernels are gathered once more for the backward pass, as groups hold many times what experts do.
    """
    x_ZRD = activate(x_ZRD, activation) if activation else x_ZRD
    return _products(x_ZRD, kernel_JDW[expert_Z], product, (2, 1)) + bias_JW[expert_Z][:, None].astype(product.out)


def _products(left: jax.Array, right: jax.Array, product: Product, over: tuple[int, int], out=None) -> jax.Array:
    """A product of matrices for each group, summed over an axis of each."""
    factors, axes = (left.astype(product.dtype), right.astype(product.dtype)), (((over[0],), (over[1],)), ((0,), (0,)))
    options = {"precision": product.precision, "preferred_element_type": out or product.out}
    return jax.lax.dot_general(*factors, axes, **options)


def _by_group_backward(product, activation, kept, gradient_ZRW):
    x_ZRD, kernel_JDW, bias_JW, expert_Z = kept
    active_ZRD = x_ZRD
    if activation:
        (wide,) = float32(x_ZRD)
        gate, derivative = ACTIVATIONS[activation]
        gate_ZRD = gate(wide)
        active_ZRD = (wide * gate_ZRD).astype(x_ZRD.dtype)
    to_x = _products(gradient_ZRW, kernel_JDW[expert_Z], product, (2, 2))
    if activation:
        to_x = to_x.astype(jnp.float32) * derivative(wide, gate_ZRD)
    of_groups = _products(active_ZRD, gradient_ZRW, product, (1, 1), jnp.float32)
    sums = functools.partial(jax.ops.segment_sum, segment_ids=expert_Z, num_segments=len(bias_JW))
    to_bias = sums(jnp.sum(gradient_ZRW, axis=1, dtype=jnp.float32))
    return to_x.astype(x_ZRD.dtype), sums(of_groups).astype(kernel_JDW.dtype), to_bias.astype(bias_JW.dtype), None


by_group.defvjp(lambda *args: (by_group(*args), args[:4]), _by_group_backward)
