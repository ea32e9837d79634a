"""Image encoder: ViT whose hidden patches enter as a learned token, as SimMIM (Xie et al. 2022, arXiv 2111.09886)."""

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maskvlm_jax.models.layers import Block, Dense, Dtype, LayerNorm, dropout, token_init
from maskvlm_jax.models.stack import Stack, layer_keys


def patchify(image_BYXC: jax.Array, patch: int) -> jax.Array:
    """Cuts (B, Y, X, 3) into (B, N, F): patches row by row, F = patch * patch * 3 as (row, column, channel)."""
    return einops.rearrange(image_BYXC, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(patch_BNF: jax.Array, patch: int) -> jax.Array:
    """Inverse of `patchify` for square images."""
    side = round(patch_BNF.shape[1] ** 0.5)
    return einops.rearrange(patch_BNF, "b (h w) (p q c) -> b (h p) (w q) c", h=side, p=patch, q=patch)


def sincos_positions(side: int, width: int) -> np.ndarray:
    """(side * side, width) sines and cosines of row and column at geometric wavelengths, as MAE (arXiv 2111.06377)."""
    rates = 10_000.0 ** -np.linspace(0, 1, width // 4, endpoint=False)
    angles = np.arange(side)[:, None] * rates
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # (side, width / 2)
    row, column = np.repeat(waves, side, axis=0), np.tile(waves, (side, 1))
    return np.concatenate([row, column], axis=1).astype(np.float32)


class ImageEncoder(nnx.Module):
    """Pre-norm ViT with a class token and learned positions (Dosovitskiy et al. 2021, arXiv 2010.11929).

    With `init_std` 0 (training from scratch, as MAE) the positions start from sines and cosines, of the size of the
    pixel embeddings that they are added to.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: int,
        dropout: float,
        init_std: float,
        remat: str,
        unroll: bool,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        patches = (image_size // patch) ** 2
        common = {"init_std": init_std, "dtype": dtype}
        self.patch_embedding = Dense(3 * patch**2, width, **common, rngs=rngs)
        self.class_token = nnx.Param(token_init()(rngs.params(), (1, 1, width), jnp.float32))
        self.mask_token = nnx.Param(token_init()(rngs.params(), (1, 1, width), jnp.float32))
        position = token_init()(rngs.params(), (1, 1 + patches, width), jnp.float32)
        if init_std == 0:
            position = position.at[0, 1:].set(sincos_positions(image_size // patch, width))
        self.position = nnx.Param(position)
        block = {"heads": heads, "mlp_ratio": mlp_ratio, "norm": "pre", "eps": 1e-6, "dropout": dropout, **common}
        self.blocks = Stack(lambda rngs: Block(width, **block, rngs=rngs), depth, remat=remat, unroll=unroll, rngs=rngs)
        self.norm = LayerNorm(width, eps=1e-6, dtype=dtype, rngs=rngs)
        self.patch, self.patches, self.width, self.dropout, self.dtype = patch, patches, width, dropout, dtype

    def __call__(
        self, image_BYXC: jax.Array, masked_BN: jax.Array | None = None, key: jax.Array | None = None
    ) -> jax.Array:
        """Encodes images.

        Args:
            image_BYXC: normalised pixels.
            masked_BN: True = the patch's embedding is replaced by the mask token, so that none of its pixels is seen.
            key: draws dropout; None = none.
        Returns:
            image_BSD with S = 1 + N, class token first.
        """
        key, block_key = (None, None) if key is None else jax.random.split(key)
        x_BND = self.patch_embedding(patchify(image_BYXC, self.patch))
        if masked_BN is not None:
            x_BND = jnp.where(masked_BN[:, :, None], self.mask_token[...].astype(x_BND.dtype), x_BND)
        start = jnp.broadcast_to(self.class_token[...].astype(x_BND.dtype), (x_BND.shape[0], 1, self.width))
        x_BSD = jnp.concatenate([start, x_BND], axis=1) + self.position[...].astype(x_BND.dtype)
        x_BSD = dropout(x_BSD, self.dropout, key)
        keys = layer_keys(block_key, self.blocks.depth)
        x_BSD = self.blocks.scan(lambda block, x, key: block(x, key=key), x_BSD, keys)
        return self.norm(x_BSD)
