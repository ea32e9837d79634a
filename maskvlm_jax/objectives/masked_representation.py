"""Masked representation modelling, MRM: MAMO (Zhao et al. 2023, arXiv 2210.04183).

    ℓ = 1/|M_im|  · Σ ‖ n(g(h_im(I_m, T)))  − sg n(ĥ_im(I, T))  ‖²
      + 1/|M_txt| · Σ ‖ n(g(h_txt(I, T_m))) − sg n(ĥ_txt(I, T)) ‖²

At masked patches and words the fused output of a half-masked pair predicts that of the whole pair under the moving
average. n: unit length; g: a head of two dense layers on the online side only (the paper's head is not known), shared
by both modalities as the equation has it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.layers import FeedForward
from maskvlm_jax.models.vlm import VLM, normalize
from maskvlm_jax.objectives import base
from maskvlm_jax.objectives.context import Context


def masked_representation_loss(pred_BMD: jax.Array, target_BMD: jax.Array) -> jax.Array:
    """distance_BM, the squared distance of vectors of unit length."""
    return jnp.sum(jnp.square(pred_BMD - target_BMD), axis=-1)


class Objective(base.Objective):
    """Predicts the fused representation of the whole pair at the masked positions of either modality."""

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> base.Needs:
        return base.Needs(fusion=True, fused_patches=True, masked_pictures=True, teacher=True)

    def __init__(self, vlm: VLM, *, shared: dict, rngs: nnx.Rngs):
        common = {name: shared[name] for name in ("init_std", "dtype")}
        self.head = FeedForward(vlm.text_encoder.width, ratio=2, **common, rngs=rngs)
        self.views = {"image": frozenset({"clean", "masked"}), "text": frozenset({"clean", "masked"})}

    def __call__(self, ctx: Context, key: jax.Array) -> tuple[tuple[base.Terms, ...], dict[str, jax.Array]]:
        patches, tokens, whole = ctx.masked_patches, ctx.masked_tokens, ctx.teacher.fused("clean", "clean")
        image_BMD, text_BMD = self.head(ctx.fuse_masked_patches()), self.head(ctx.fuse_masked_tokens())
        target_image_BMD = whole.image(patches.ids_BM + ctx.vlm.image_encoder.prefix)
        target_text_BMD = whole.text(tokens.ids_BM)
        unit = lambda x: normalize(x.astype(jnp.float32))  # noqa: E731
        image_BM = masked_representation_loss(unit(image_BMD), unit(target_image_BMD))
        text_BM = masked_representation_loss(unit(text_BMD), unit(target_text_BMD))
        terms = base.Terms(image_BM, patches.valid_BM, name="image"), base.Terms(text_BM, tokens.valid_BM, name="text")
        return terms, {}
