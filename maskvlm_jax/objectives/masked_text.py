"""Masked language modelling given the picture, p(T | I): MaskVLM (Kwon et al. 2023, arXiv 2208.02131), Eq. 1.

    φ_txt(I, T_m) = FC( g_txt( f_im(I), f_txt(T_m) ) )
    ℓ = H( y_T^M, softmax φ_txt^M(I, T_m) )

the first term, over the masked tokens M. The vocabulary's logits are computed at masked positions only. The mean is
over all masked tokens of the batch (the paper does not say).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from maskvlm_jax.models.layers import Dense, Positions
from maskvlm_jax.models.primitives import Product, dense
from maskvlm_jax.models.vlm import VLM
from maskvlm_jax.objectives import base
from maskvlm_jax.objectives.context import Context
from maskvlm_jax.objectives.reduce import masked_mean


def masked_token_loss(logits_BMV: jax.Array, target_BM: jax.Array) -> jax.Array:
    """nll_BM, the negative log-likelihood of each token in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits_BMV.astype(jnp.float32), target_BM)


class Objective(base.Objective, base.PredictsWords):
    """Predicts masked tokens from the visible ones and the picture.

    Args:
        vlm: the model.
        shared: block arguments shared with the model.
        tie: use the word embedding as the classifier's weights (the paper does not say; untied by default).
        other: the image view that is read, "clean" (the paper) or "masked" (both masked at once, its Table 6).
    """

    choices: ClassVar = {"other": ("clean", "masked")}
    training_arguments = ("other",)

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> base.Needs:
        return base.Needs(fusion=True, masked_pictures=arguments.get("other") == "masked")

    def __init__(self, vlm: VLM, *, shared: dict, tie: bool = False, other: str = "clean", rngs: nnx.Rngs):
        vocab_size, width = vlm.text_encoder.embedding.shape
        self.tie, self.other = tie, other
        if tie:
            self.bias = nnx.Param(jnp.zeros((vocab_size,), jnp.float32))
        else:
            common = {name: shared[name] for name in ("init_std", "dtype")}
            self.to_words = Dense(width, vocab_size, out="float32", **common, rngs=rngs)
        self.views = {"image": frozenset({other}), "text": frozenset({"masked"})}

    def predict(self, ctx: Context) -> tuple[jax.Array, Positions]:
        """logits_BMV at the masked tokens, and which tokens they are."""
        positions = ctx.masked_tokens
        fused_BMD = ctx.fuse_masked_tokens(self.other)
        if self.tie:
            words_VD, flat_MD = ctx.vlm.text_encoder.embedding[...], fused_BMD.reshape(-1, fused_BMD.shape[-1])
            logits_MV = dense(flat_MD, words_VD.T, self.bias[...], Product(fused_BMD.dtype, "float32"))
            return logits_MV.reshape(*fused_BMD.shape[:2], -1), positions
        return self.to_words(fused_BMD), positions

    def __call__(self, ctx: Context, key: jax.Array) -> tuple[base.Terms, dict[str, jax.Array]]:
        return self.loss(ctx, *self.predict(ctx))

    def loss(
        self, ctx: Context, logits_BMV: jax.Array, positions: Positions
    ) -> tuple[base.Terms, dict[str, jax.Array]]:
        """Terms and metrics of predictions."""
        target_BM = jnp.take_along_axis(ctx.batch["tokens"], positions.ids_BM, axis=1)
        correct_BM = jnp.argmax(logits_BMV, axis=-1) == target_BM
        accuracy = masked_mean(correct_BM.astype(jnp.float32), positions.valid_BM)
        return base.Terms(masked_token_loss(logits_BMV, target_BM), positions.valid_BM), {"accuracy": accuracy}
