"""Masked image modelling given the caption, p(I | T): MaskVLM (Kwon et al. 2023, arXiv 2208.02131), Eq. 1, second term.

    φ_im(I_m, T) = FC( g_im^de( g_im( f_im(I_m), f_txt(T) ), f_txt(T) ) )
    ℓ = 1/Ω(I^M) · ‖ I^M − φ_im^M(I_m, T) ‖₁

over the pixels M of masked patches, with the normalised input picture as the target (as SimMIM, arXiv 2111.09886; the
paper does not say). The squared error of MAE (arXiv 2111.06377) can take the place of ‖·‖₁.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.attention import First, with_even_length
from maskvlm_jax.models.block import BlockSpec
from maskvlm_jax.models.cross import CrossStack
from maskvlm_jax.models.layers import Dense, Positions, take
from maskvlm_jax.models.vision import patchify
from maskvlm_jax.models.vlm import VLM
from maskvlm_jax.objectives import base
from maskvlm_jax.objectives.context import Context


def masked_patch_target(image_BYXC: jax.Array, ids_BM: jax.Array, patch: int) -> jax.Array:
    """target_BMF: the pixels of the patches `ids_BM`."""
    return take(patchify(image_BYXC, patch), ids_BM)


def masked_pixel_loss(pred_BMF: jax.Array, target_BMF: jax.Array, *, norm: str) -> jax.Array:
    """error_BM: absolute ("l1") or squared ("l2") error, averaged over the values of each patch."""
    difference_BMF = pred_BMF.astype(jnp.float32) - target_BMF
    error_BMF = jnp.abs(difference_BMF) if norm == "l1" else jnp.square(difference_BMF)
    return jnp.mean(error_BMF, axis=-1)


class Objective(base.Objective, base.PredictsPixels):
    """Rebuilds masked patches from the visible ones and the caption.

    Args:
        vlm: the model; gives widths and block arguments.
        decoder: values of the spec of the decoder's `CrossStack`, g_im^de, and its depth; of depth 0 there is none, and
            the dense layer reads the fused patches.
        shared: block arguments shared with the model.
        other: the text view that is read, "clean" (the paper) or "masked" (both masked at once, its Table 6).
        norm: of the pixel error, "l1" (the paper) or "l2". The best guess under "l1" is the median, which stays the
            background until an object is more likely than not; under "l2" it is the mean, which every clue moves.
    """

    choices: ClassVar = {"other": ("clean", "masked"), "norm": ("l1", "l2")}
    training_arguments = ("other", "norm")

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> base.Needs:
        return base.Needs(fusion=True, fused_patches=True, masked_pictures=True)

    def __init__(
        self,
        vlm: VLM,
        *,
        decoder: dict,
        shared: dict,
        other: str = "clean",
        norm: str = "l1",
        rngs: nnx.Rngs,
    ):
        self.decoder = _cross_stack(decoder | shared, rngs) if decoder["depth"] else None
        outputs = 3 * vlm.image_encoder.patch**2
        common = {name: shared[name] for name in ("init_std", "dtype")}
        self.to_pixels = Dense(decoder["width"], outputs, out="float32", **common, rngs=rngs)
        self.other, self.norm, self.patch = other, norm, vlm.image_encoder.patch
        self.views = {"image": frozenset({"masked"}), "text": frozenset({other})}

    def predict(self, ctx: Context) -> tuple[jax.Array, Positions]:
        """pred_BMF, normalised pixels of the masked patches, and which patches they are."""
        positions = ctx.masked_patches
        if self.decoder is None:
            return self.to_pixels(ctx.fuse_masked_patches(self.other)), positions
        memory = self.decoder.project(ctx.text(self.other), First.of(ctx.batch["token_valid"]))
        fused_BSD = ctx.fuse_image("masked", self.other)
        read_BM = positions.ids_BM + fused_BSD.shape[1] - ctx.batch["image_masked"].shape[1]  # behind a class token
        fused_BSD, valid_BS = with_even_length(fused_BSD, self.decoder.heads)
        decoded_BMD = self.decoder(fused_BSD, memory, valid_BS, read_BM, ctx.key("image_decoder"))
        return self.to_pixels(decoded_BMD), positions

    def __call__(self, ctx: Context, key: jax.Array) -> tuple[base.Terms, dict[str, jax.Array]]:
        pred_BMF, positions = self.predict(ctx)
        target_BMF = masked_patch_target(ctx.pixels_BYXC, positions.ids_BM, self.patch)
        return base.Terms(masked_pixel_loss(pred_BMF, target_BMF, norm=self.norm), positions.valid_BM), {}


def _cross_stack(options: dict, rngs: nnx.Rngs) -> CrossStack:
    spec, options = BlockSpec.split(options)
    return CrossStack(spec, **options, rngs=rngs)
