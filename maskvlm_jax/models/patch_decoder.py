"""Hidden patches rebuilt from visible ones: the decoder of MAE (He et al. 2022, arXiv 2111.06377)."""

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.attention import with_even_length
from maskvlm_jax.models.block import BlockSpec
from maskvlm_jax.models.joint import JointStack
from maskvlm_jax.models.layers import Dense, Positions, restore, token_init
from maskvlm_jax.models.positions import grid_waves


class PatchDecoder(nnx.Module):
    """A plain Transformer over what was encoded of a picture, and a mask token in the place of each hidden patch.

    Args:
        spec, depth: of the blocks; their width may be another than the stream's.
        width: of the stream, and of what is given back.
        prefix, patches: positions before the first patch, which are read along, and N.
    """

    def __init__(self, spec: BlockSpec, *, depth: int, width: int, prefix: int, patches: int, rngs: nnx.Rngs):
        common = {"init_std": spec.init_std, "dtype": spec.dtype, "rngs": rngs}
        self.to_decoder = Dense(width, spec.width, **common)
        self.blocks = JointStack(spec, depth=depth, rngs=rngs)
        self.from_decoder = Dense(spec.width, width, **common)
        self.mask_token = nnx.Param(token_init()(rngs.params(), (1, 1, spec.width), jnp.float32))
        self.prefix, self.patches, self.width, self.heads = prefix, patches, spec.width, spec.heads

    def __call__(
        self, encoded_BUD: jax.Array, visible: Positions, read_BR: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        """The patches `read_BR`, all if None, from the prefix and the visible patches."""
        encoded_BUD = self.to_decoder(encoded_BUD)
        x_BND = restore(encoded_BUD[:, self.prefix :], visible, self.patches, self.mask_token[...])
        x_BND += jnp.asarray(grid_waves(round(self.patches**0.5), self.width), x_BND.dtype)  # fixed, MAE's are too
        x_BSD = jnp.concatenate([encoded_BUD[:, : self.prefix], x_BND], axis=1)
        x_BSD, valid_BS = with_even_length(x_BSD, self.heads)
        if read_BR is None:
            read_BR = jnp.broadcast_to(jnp.arange(self.patches), (len(x_BSD), self.patches))
        return self.from_decoder(self.blocks(x_BSD, valid_BS, self.prefix + read_BR, key))
