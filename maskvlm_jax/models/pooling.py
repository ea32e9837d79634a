"""How a sequence becomes one vector of the contrastive space."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maskvlm_jax.models.activations import activate
from maskvlm_jax.models.layers import Dense, dropout, token_init

OF_TWO = ("both", "first+attention")  # kinds of two vectors side by side


class Projection(nnx.Module):
    """Two dense layers with a GELU between them, the first as wide as what it reads; computed in full float32.

    A share `rate` of the hidden units is dropped in training.
    """

    def __init__(self, width: int, embed: int, *, rate: float, init_std: float, exact: bool, rngs: nnx.Rngs):
        options = {"init_std": init_std, "exact": exact, "rngs": rngs}
        self.hidden, self.last, self.rate = Dense(width, width, **options), Dense(width, embed, **options), rate

    def __call__(self, x_BD: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return self.last(dropout(activate(self.hidden(x_BD), "gelu"), self.rate, key))


class AttentionPool(nnx.Module):
    """The positions of a sequence by what the learned query of each head attends to, (B, D).

    The pooling of CoCa (Yu et al. 2022, arXiv 2205.01917) with one query, without the norm behind it. There is no
    projection of keys: q_h · (W_h x) is a product of x with one vector, and that is what is learned.
    """

    def __init__(self, width: int, heads: int, *, init_std: float, rngs: nnx.Rngs):
        self.query = nnx.Param(token_init()(rngs.params(), (heads, width), jnp.float32))
        self.value = Dense(width, width, init_std=init_std, exact=True, rngs=rngs)

    def __call__(self, x_BSD: jax.Array, valid_BS: jax.Array | None = None) -> jax.Array:
        x_BSD, heads = x_BSD.astype(jnp.float32), len(self.query[...])
        logits_BHS = jnp.einsum("BSD,HD->BHS", x_BSD, self.query[...], precision=jax.lax.Precision.HIGHEST)
        if valid_BS is not None:
            logits_BHS = jnp.where(valid_BS[:, None], logits_BHS, -jnp.inf)
        weights_BHS = jax.nn.softmax(logits_BHS, axis=-1)
        # The average first, then each head's values of it: the same, and the values of every position are not computed.
        mean_BHD = jnp.einsum("BHS,BSD->BHD", weights_BHS, x_BSD, precision=jax.lax.Precision.HIGHEST)
        kernel_DHK = self.value.kernel[...].reshape(x_BSD.shape[-1], heads, -1)
        value_BHK = jnp.einsum("BHD,DHK->BHK", mean_BHD, kernel_DHK, precision=jax.lax.Precision.HIGHEST)
        return value_BHK.reshape(len(x_BSD), -1) + self.value.bias[...]


def attention_pool(width: int, heads: int, *, kind: str, init_std: float, rngs: nnx.Rngs) -> AttentionPool | None:
    """What a kind of pooling learns; None of those that learn nothing."""
    return AttentionPool(width, heads, init_std=init_std, rngs=rngs) if "attention" in kind else None


def projection(width: int, embed: int, *, kind: str, layers: int, rate: float, **options) -> nnx.Module:
    """What maps a pooled sequence of vectors of a width into the contrastive space: a dense layer, or two with dropout
    between them."""
    width = 2 * width if kind in OF_TWO else width
    return Projection(width, embed, rate=rate, **options) if layers == 2 else Dense(width, embed, **options)


def centred(x_BSD: jax.Array, centre_2D: jax.Array) -> jax.Array:
    """x - c in float32, where the first position of a sequence has a c of its own, and all others have one."""
    first_S1 = (np.arange(x_BSD.shape[1]) == 0)[:, None]
    return x_BSD.astype(jnp.float32) - jnp.where(first_S1, centre_2D[0], centre_2D[1])


def pool(
    x_BSD: jax.Array,
    kind: str,
    attention: AttentionPool | None = None,
    *,
    before: int = 0,
    valid_BS: jax.Array | None = None,
) -> jax.Array:
    """One float32 vector a sequence, (B, D), or (B, 2 D).

    Args:
        kind: "first", its first position; "mean", of the positions from `before` on that are valid; "both", one beside
            the other; "attention", what `attention` makes of all that are valid; "first+attention", both.
        before: positions that are no patch.
        valid_BS: which positions are real; None = all.
    """
    first_BD = x_BSD[:, 0].astype(jnp.float32)
    if kind == "first":
        return first_BD
    if attention is not None:
        attended_BD = attention(x_BSD, valid_BS)
        return attended_BD if kind == "attention" else jnp.concatenate([first_BD, attended_BD], axis=1)
    rest_BSD = x_BSD[:, before:].astype(jnp.float32)
    where = None if valid_BS is None else valid_BS[:, before:, None]
    mean_BD = jnp.mean(rest_BSD, axis=1, where=where)
    return mean_BD if kind == "mean" else jnp.concatenate([first_BD, mean_BD], axis=1)
