"""How much a vector is like each of a number of learned prototypes: the head of DINO (Caron et al. 2021, arXiv
2104.14294) and iBOT (Zhou et al. 2022, arXiv 2111.07832)."""

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.layers import TOKEN_STD, Dense, kernel_init
from maskvlm_jax.models.primitives import Dtype
from maskvlm_jax.models.vlm import cosine, normalize


class Prototypes(nnx.Module):
    """Cosines of J prototypes with what three dense layers, GELU between them, make of a vector.

    Prototypes are kept at unit length (weight normalisation whose gain stays one, as both releases have it).

    Args:
        width: of what is read.
        count: J.
        hidden: width of the hidden layers.
        bottleneck: width of the space in which the prototypes lie.
    """

    def __init__(
        self, width: int, *, count: int, hidden: int, bottleneck: int, init_std: float, dtype: Dtype, rngs: nnx.Rngs
    ):
        common = {"init_std": init_std, "dtype": dtype, "rngs": rngs}
        self.first, self.second = Dense(width, hidden, **common), Dense(hidden, hidden, **common)
        self.third = Dense(hidden, bottleneck, out="float32", **common)
        self.kernel = nnx.Param(kernel_init(TOKEN_STD)(rngs.params(), (bottleneck, count), jnp.float32))

    def __call__(self, x_BRD: jax.Array) -> jax.Array:
        """cosine_BRJ, float32."""
        hidden = self.second.of_activation(self.first(x_BRD), "gelu")
        unit = normalize(self.third.of_activation(hidden, "gelu"))
        cosines = cosine(unit.reshape(-1, unit.shape[-1]), normalize(self.kernel[...].T))
        return cosines.reshape(*x_BRD.shape[:-1], -1)
