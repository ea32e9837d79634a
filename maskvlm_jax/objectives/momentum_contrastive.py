"""Contrastive loss with a momentum encoder, a queue and soft targets: ALBEF (Li et al. 2021, arXiv 2107.07651).

    s_n = z_im · ẑ_txt^n / τ,   ŝ_n = ẑ_im · ẑ_txt^n / τ      over the batch and the queue, ẑ of the moving average
    ℓ   = ½ H( α softmax(ŝ) + (1 − α) y , softmax(s) )  + ½ the same from caption to picture

The release raises α from 0 over the first epoch, here `ramp`. Differs from it: pairs with the same picture or caption
are no negatives of each other, and the queue starts empty rather than random.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.vlm import VLM, cosine
from maskvlm_jax.objectives import base
from maskvlm_jax.objectives.context import Context


def distilled_cross_entropy(logits_BG: jax.Array, teacher_BG: jax.Array, alpha: jax.Array | float) -> jax.Array:
    """loss_B: H(α softmax(teacher) + (1 − α) y, softmax(logits)), y the own column; a column of −inf does not count."""
    log_BG = jax.nn.log_softmax(logits_BG)
    own_BG = jnp.eye(*logits_BG.shape)
    target_BG = alpha * jax.nn.softmax(teacher_BG) + (1.0 - alpha) * own_BG
    return -jnp.sum(jnp.where(jnp.isfinite(logits_BG), target_BG * log_BG, 0.0), axis=1)


class Objective(base.Objective, base.TrainsEmbeddings):
    """Pulls matched pairs together, with negatives from earlier batches.

    Args:
        vlm: the model.
        queue: pairs that are kept; 0 = none. 65,536 in the paper.
        alpha: weight of the moving average's soft targets; 0 = the pair alone. 0.4 in the paper.
        ramp: shares of the training between which that weight rises from 0 to `alpha`; (0, 0): it is constant.
    """

    training_arguments = ("queue", "alpha", "ramp")

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> base.Needs:
        return base.Needs(embedding=True, teacher=True)

    def __init__(
        self,
        vlm: VLM,
        *,
        shared: dict,
        queue: int,
        alpha: float,
        ramp: tuple[float, float] = (0.0, 0.0),
        rngs: nnx.Rngs,
    ):
        self.queue, self.alpha, self.ramp = queue, alpha, tuple(ramp)
        self.views = {"image": frozenset({"clean"}), "text": frozenset({"clean"})}

    def __call__(self, ctx: Context, key: jax.Array) -> tuple[base.Terms, dict[str, jax.Array]]:
        teacher, temperature = ctx.teacher, ctx.vlm.current_temperature()
        alpha = self.alpha * ctx.ramp(*self.ramp)
        images_GE, texts_GE = teacher.image_embedding_BE, teacher.text_embedding_BE
        excluded_BG = ctx.same_pair_BB & ~jnp.eye(len(images_GE), dtype=bool)
        if ctx.queue is not None:
            images_GE = jnp.concatenate([images_GE, ctx.queue.image_QE])
            texts_GE = jnp.concatenate([texts_GE, ctx.queue.text_QE])
            same_BQ = jnp.any(ctx.pair_ids_B2[:, None] == ctx.queue.pair_id_Q2[None], axis=-1)
            excluded_BG = jnp.concatenate([excluded_BG, same_BQ | ~ctx.queue.valid_Q[None]], axis=1)

        def direction(own_BE, teacher_BE, others_GE):
            logits_BG, teacher_BG = (
                jnp.where(excluded_BG, -jnp.inf, cosine(x, others_GE) / temperature) for x in (own_BE, teacher_BE)
            )
            return distilled_cross_entropy(logits_BG, jax.lax.stop_gradient(teacher_BG), alpha), logits_BG

        to_text_B, logits_BG = direction(ctx.image_embedding_BE, teacher.image_embedding_BE, texts_GE)
        to_image_B, _ = direction(ctx.text_embedding_BE, teacher.text_embedding_BE, images_GE)
        accuracy = jnp.mean(jnp.argmax(logits_BG, axis=1) == jnp.arange(len(logits_BG)))
        return base.Terms(0.5 * (to_text_B + to_image_B)), {"accuracy": accuracy, "temperature": temperature}
