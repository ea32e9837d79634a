"""Masked patches predicted as momentum visual features: the MIM of MAMO (Zhao et al. 2023, arXiv 2210.04183).

    ℓ = 1/|M| · Σ_{M} ‖ n(d(h_im(I_m, T))) − sg n(v̂(I)) ‖₁ / √D

h_im: fused patches of the masked picture with its caption; v̂: the image encoder of the moving average on the whole
picture; n: unit length; d: a head of two dense layers (the paper finds its depth to matter little). The paper's
normaliser of ‖·‖₁ is not known; with √D the loss is alike at every width: unrelated unit vectors are 2/√π = 1.13
apart, where the plain sum is 12.8 at D = 128 and 31.3 at 768, far above the other losses.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.layers import FeedForward, take
from maskvlm_jax.models.vlm import VLM, normalize
from maskvlm_jax.objectives import base
from maskvlm_jax.objectives.context import Context


def masked_feature_loss(pred_BMD: jax.Array, target_BMD: jax.Array) -> jax.Array:
    """distance_BM, ‖·‖₁ / √D between vectors of unit length."""
    return jnp.sum(jnp.abs(pred_BMD - target_BMD), axis=-1) / pred_BMD.shape[-1] ** 0.5


class Objective(base.Objective, base.PredictsFeatures):
    """Predicts what the moving average's image encoder makes of masked patches."""

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> base.Needs:
        return base.Needs(fusion=True, fused_patches=True, masked_pictures=True, teacher=True)

    def __init__(self, vlm: VLM, *, shared: dict, rngs: nnx.Rngs):
        common = {name: shared[name] for name in ("init_std", "dtype")}
        self.head = FeedForward(vlm.image_encoder.width, ratio=2, **common, rngs=rngs)
        self.views = {"image": frozenset({"masked"}), "text": frozenset({"clean"})}

    def predict(self, ctx: Context) -> tuple[jax.Array, jax.Array]:
        """pred_BMD and target_BMD at the masked patches, unit length."""
        read_BM = ctx.masked_patches.ids_BM + ctx.vlm.image_encoder.prefix
        pred_BMD = normalize(self.head(ctx.fuse_masked_patches()).astype(jnp.float32))
        return pred_BMD, normalize(take(ctx.teacher.image("clean"), read_BM).astype(jnp.float32))

    def __call__(self, ctx: Context, key: jax.Array) -> tuple[base.Terms, dict[str, jax.Array]]:
        return base.Terms(masked_feature_loss(*self.predict(ctx)), ctx.masked_patches.valid_BM), {}
