"""How a sequence becomes one vector of the contrastive space."""

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.activations import activate
from maskvlm_jax.models.layers import Dense


class Projection(nnx.Module):
    """Two dense layers with a GELU between them, the first as wide as what it reads; computed in full float32."""

    def __init__(self, width: int, embed: int, *, init_std: float, exact: bool, rngs: nnx.Rngs):
        options = {"init_std": init_std, "exact": exact, "rngs": rngs}
        self.hidden, self.last = Dense(width, width, **options), Dense(width, embed, **options)

    def __call__(self, x_BD: jax.Array) -> jax.Array:
        return self.last(activate(self.hidden(x_BD), "gelu"))


def projection(width: int, embed: int, *, kind: str, layers: int, **options) -> nnx.Module:
    """What maps a pooled sequence of vectors of a width into the contrastive space: a dense layer, or two."""
    width = 2 * width if kind == "both" else width
    return (Projection if layers == 2 else Dense)(width, embed, **options)


def pool(x_BSD: jax.Array, kind: str, *, before: int = 0, valid_BS: jax.Array | None = None) -> jax.Array:
    """One float32 vector a sequence, (B, D), or (B, 2 D).

    Args:
        kind: "first", its first position; "mean", of the positions from `before` on that are valid; "both", one beside
            the other.
        before: positions that are no patch.
        valid_BS: which positions are real; None = all.
    """
    first_BD = x_BSD[:, 0].astype(jnp.float32)
    if kind == "first":
        return first_BD
    rest_BSD = x_BSD[:, before:].astype(jnp.float32)
    where = None if valid_BS is None else valid_BS[:, before:, None]
    mean_BD = jnp.mean(rest_BSD, axis=1, where=where)
    return mean_BD if kind == "mean" else jnp.concatenate([first_BD, mean_BD], axis=1)
