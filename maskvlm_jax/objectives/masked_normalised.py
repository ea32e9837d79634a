"""Masked image modelling of pixels that are normalised patch by patch: MAE (He et al. 2022, arXiv 2111.06377).

    t_n = ( x_n - mean(x_n) ) / sqrt( var(x_n) + 1e-6 )
    ℓ = 1/|M| · Σ_{n in M} mean( ( FC(h_n) - t_n )² )

over the masked patches M of a batch, h_n what the fusion makes of the patch given the caption, as medical M3AE has it
(Chen et al. 2022, arXiv 2209.07098, its code: `var` is the unbiased one). x_n is of the normalised picture.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.layers import Dense, Positions, take
from maskvlm_jax.models.vision import patchify
from maskvlm_jax.models.vlm import VLM
from maskvlm_jax.objectives import base
from maskvlm_jax.objectives.context import Context
from maskvlm_jax.objectives.masked_image import masked_patch_target, masked_pixel_loss

EPS = 1e-6  # added to the variance of a patch


def patch_statistics(patch_BNF: jax.Array) -> tuple[jax.Array, jax.Array]:
    """mean_BN1 and deviation_BN1 of the values of each patch, by which it is normalised; the variance is unbiased."""
    mean_BN1 = jnp.mean(patch_BNF, axis=-1, keepdims=True)
    variance_BN1 = jnp.var(patch_BNF, axis=-1, keepdims=True, ddof=1)
    return mean_BN1, jnp.sqrt(variance_BN1 + EPS)


def normalised_patches(patch_BNF: jax.Array) -> jax.Array:
    """t of every patch."""
    mean_BN1, deviation_BN1 = patch_statistics(patch_BNF)
    return (patch_BNF - mean_BN1) / deviation_BN1


def from_neighbours(value_BNV: jax.Array, masked_BN: jax.Array) -> jax.Array:
    """value_BNV of every patch as the mean of the visible ones, weighted by exp(-d²), d their distance in patches."""
    side = round(masked_BN.shape[1] ** 0.5)
    row_N, column_N = jnp.divmod(jnp.arange(side**2), side)
    squared_NN = (row_N[:, None] - row_N) ** 2 + (column_N[:, None] - column_N) ** 2
    logits_BNN = jnp.where(masked_BN[:, None], -1e9, -squared_NN.astype(jnp.float32))
    return jnp.einsum("bnm,bmv->bnv", jax.nn.softmax(logits_BNN), value_BNV)


class Objective(base.Objective, base.PredictsPixels):
    """Rebuilds masked patches, each normalised, from the visible ones and the caption.

    Args:
        vlm: the model.
        shared: block arguments shared with the model.
        other: the text view that is read, "clean" (the paper) or "masked".
    """

    choices: ClassVar = {"other": ("clean", "masked")}
    training_arguments = ("other",)

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> base.Needs:
        return base.Needs(fusion=True, fused_patches=True, masked_pictures=True)

    def __init__(self, vlm: VLM, *, shared: dict, other: str = "clean", rngs: nnx.Rngs):
        common = {name: shared[name] for name in ("init_std", "dtype")}
        encoder = vlm.image_encoder
        self.to_pixels = Dense(encoder.width, 3 * encoder.patch**2, out="float32", **common, rngs=rngs)
        self.other, self.patch = other, encoder.patch
        self.views = {"image": frozenset({"masked"}), "text": frozenset({other})}

    def predict(self, ctx: Context) -> tuple[jax.Array, Positions]:
        """pred_BMF, normalised pixels of the masked patches, and which patches they are.

        The mean and deviation of a patch are not predicted: those of the visible patches around it take their place.
        """
        positions, masked_BN = ctx.masked_patches, ctx.batch["image_masked"]
        statistics_BN2 = jnp.concatenate(patch_statistics(patchify(ctx.pixels_BYXC, self.patch)), axis=-1)
        found_BM2 = take(from_neighbours(statistics_BN2, masked_BN), positions.ids_BM)
        return self._normalised(ctx) * found_BM2[..., 1:] + found_BM2[..., :1], positions

    def __call__(self, ctx: Context, key: jax.Array) -> tuple[base.Terms, dict[str, jax.Array]]:
        positions = ctx.masked_patches
        target_BMF = normalised_patches(masked_patch_target(ctx.pixels_BYXC, positions.ids_BM, self.patch))
        return base.Terms(masked_pixel_loss(self._normalised(ctx), target_BMF, norm="l2"), positions.valid_BM), {}

    def _normalised(self, ctx: Context) -> jax.Array:
        """pred_BMF in units of each patch's deviation."""
        return self.to_pixels(ctx.fuse_masked_patches(self.other))
