"""RECON, the picture rebuilt from hidden embeddings and words: MLIM (Arici et al. 2021, arXiv 2109.12178).

    ℓ = 1/|R| · Σ_{pixels of R} Σ_{channels} ( x − σ(decoder(h)) )²        x in [0, 1]

Summaries of the paper differ in R: the whole picture (the default here, since embeddings lose detail everywhere), or
the masked patches. One pass hides words and patches at once, as the batch's masks say.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maskvlm_jax.models.layers import Positions
from maskvlm_jax.models.vision import ConvDecoder, patchify
from maskvlm_jax.models.vlm import VLM
from maskvlm_jax.objectives import base
from maskvlm_jax.objectives.context import Context
from maskvlm_jax.runtime.pixels import IMAGENET_MEAN, IMAGENET_STD

MEAN, STD = (np.array(x, np.float32) for x in (IMAGENET_MEAN, IMAGENET_STD))


def reconstruction_loss(pred_BNF: jax.Array, target_BNF: jax.Array) -> jax.Array:
    """error_BN: squared error summed over channels, averaged over the pixels of each patch; pixels in [0, 1]."""
    pixels = pred_BNF.shape[-1] // 3
    return jnp.sum(jnp.square(pred_BNF.astype(jnp.float32) - target_BNF), axis=-1) / pixels


class Objective(base.Objective, base.PredictsPixels):
    """Rebuilds the picture from its visible embeddings and the visible words.

    Args:
        vlm: the model.
        shared: block arguments shared with the model.
        channels: of the decoder's last layers.
        region: "all" or "masked".
    """

    choices: ClassVar = {"region": ("all", "masked")}
    training_arguments = ("region",)

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> base.Needs:
        return base.Needs(fusion=True, fused_patches=True, masked_pictures=True)

    def __init__(self, vlm: VLM, *, shared: dict, channels: int, region: str = "all", rngs: nnx.Rngs):
        encoder = vlm.image_encoder
        common = {name: shared[name] for name in ("init_std", "dtype")}
        self.decoder = ConvDecoder(encoder.patch, encoder.width, channels=channels, **common, rngs=rngs)
        self.region = region
        self.views = {"image": frozenset({"masked"}), "text": frozenset({"masked"})}

    def _rebuilt(self, ctx: Context) -> jax.Array:
        """pred_BNF in [0, 1]."""
        fused_BSD = ctx.fuse_image("masked", "masked")
        fused_BND = fused_BSD[:, fused_BSD.shape[1] - ctx.batch["image_masked"].shape[1] :]
        return jax.nn.sigmoid(self.decoder(fused_BND).astype(jnp.float32))

    def predict(self, ctx: Context) -> tuple[jax.Array, Positions]:
        """pred_BMF, normalised pixels of the masked patches, and which patches they are."""
        positions = ctx.masked_patches
        pred_BMF = jnp.take_along_axis(self._rebuilt(ctx), positions.ids_BM[:, :, None], axis=1)
        pixels = pred_BMF.reshape(*pred_BMF.shape[:2], -1, 3)
        return ((pixels - MEAN) / STD).reshape(pred_BMF.shape), positions

    def __call__(self, ctx: Context, key: jax.Array) -> tuple[base.Terms, dict[str, jax.Array]]:
        image_BYXC, masked_BN = ctx.pixels_BYXC, ctx.batch["image_masked"]
        target_BNF = patchify(image_BYXC * STD + MEAN, ctx.vlm.image_encoder.patch)
        counted_BN = masked_BN if self.region == "masked" else jnp.ones_like(masked_BN)
        return base.Terms(reconstruction_loss(self._rebuilt(ctx), target_BNF), counted_BN), {}
