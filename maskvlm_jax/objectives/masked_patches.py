"""Masked image modelling without a text: FastMIM (Guo et al. 2022, arXiv 2212.06593).

    φ(I_m) = FC( LN( decoder( FC( f_im(I_m) ) ) ) )
    ℓ = 1/|M| · Σ_{patches of M} mean_F ( φ(I_m) − t )²

over the masked patches M. The target t is histograms of gradients (`hog`), or the pixels themselves, as SimMIM's (arXiv
2111.09886). The decoder is self-attention over all positions of the picture, narrow and shallow; it has no positions of
its own.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from flax import nnx

from maskvlm_jax.models.attention import with_even_length
from maskvlm_jax.models.block import BlockSpec
from maskvlm_jax.models.joint import JointStack
from maskvlm_jax.models.layers import Dense, Positions, take
from maskvlm_jax.models.vlm import VLM
from maskvlm_jax.objectives import base, hog
from maskvlm_jax.objectives.context import Context
from maskvlm_jax.objectives.masked_image import masked_patch_target, masked_pixel_loss


class Objective(base.Objective, base.PredictsPatches):
    """Predicts what is made of masked patches from the visible ones.

    Args:
        vlm: the model; its text is not read.
        decoder: values of the spec of the decoder's blocks, and its depth.
        shared: block arguments shared with the model.
        target: "hog", or "pixels", the normalised input.
        cell: pixels of a side of the squares that a histogram is made of; it divides the patch.
        least: length from which on a histogram is made one of length 1, in sums of the gradients of 8-bit pixels (of an
            edge between black and white some 1,000 a pixel of its length); 0 = each is, the paper's.
        norm: of the error, "l2" (the paper) or "l1".
    """

    own_width = True
    choices: ClassVar = {"target": ("hog", "pixels"), "norm": ("l1", "l2")}
    training_arguments = ("norm", "least")

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> base.Needs:
        cell = arguments.get("cell", 8) if arguments.get("target", "hog") == "hog" else 0
        return base.Needs(masked_pictures=True, cell=cell, hidden=("token", "pixel", "drop"))

    def __init__(
        self,
        vlm: VLM,
        *,
        decoder: dict,
        shared: dict,
        target: str = "hog",
        cell: int = 8,
        least: float = 0,
        norm: str = "l2",
        rngs: nnx.Rngs,
    ):
        spec, options = BlockSpec.split(decoder | shared)
        encoder, common = vlm.image_encoder, {name: shared[name] for name in ("init_std", "dtype")}
        outputs = 3 * encoder.patch**2 if target == "pixels" else 3 * hog.BINS * (encoder.patch // cell) ** 2
        self.to_decoder = Dense(encoder.width, spec.width, **common, rngs=rngs)
        self.decoder = JointStack(spec, **options, rngs=rngs)
        self.to_target = Dense(spec.width, outputs, out="float32", **common, rngs=rngs)
        self.kind, self.cell, self.least, self.norm, self.patch = target, cell, least, norm, encoder.patch
        self.bins = hog.BINS if target == "hog" else 0
        self.views = {"image": frozenset({"masked"}), "text": frozenset()}

    def predict(self, ctx: Context) -> tuple[jax.Array, Positions]:
        positions = ctx.masked_patches
        x_BSD, valid_BS = with_even_length(self.to_decoder(ctx.image("masked")), self.decoder.heads)
        read_BM = positions.ids_BM + ctx.vlm.image_encoder.prefix
        return self.to_target(self.decoder(x_BSD, valid_BS, read_BM, ctx.key("patch_decoder"))), positions

    def target(self, ctx: Context) -> jax.Array:
        ids_BM = ctx.masked_patches.ids_BM
        if self.kind == "pixels":
            return masked_patch_target(ctx.pixels_BYXC, ids_BM, self.patch)
        # Of the 8-bit pixels: where `least` is 0 the same as of normalised ones, but for their rounding.
        return take(hog.of_patches(ctx.batch["image"], patch=self.patch, cell=self.cell, least=self.least), ids_BM)

    def __call__(self, ctx: Context, key: jax.Array) -> tuple[base.Terms, dict[str, jax.Array]]:
        pred_BMF, positions = self.predict(ctx)
        return base.Terms(masked_pixel_loss(pred_BMF, self.target(ctx), norm=self.norm), positions.valid_BM), {}
