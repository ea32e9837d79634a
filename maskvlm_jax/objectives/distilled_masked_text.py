"""Masked language modelling with momentum distillation: ALBEF (Li et al. 2021, arXiv 2107.07651), Eq. 7.

    ℓ = (1 − α) H( y, p(I, T_m) ) + α H( p̂(I, T_m), p(I, T_m) )

p̂: the prediction of the moving average for the same masked caption.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.vlm import VLM
from maskvlm_jax.objectives import base, masked_text
from maskvlm_jax.objectives.context import Context


def distillation_loss(logits_BMV: jax.Array, teacher_BMV: jax.Array) -> jax.Array:
    """entropy_BM, H(softmax(teacher), softmax(logits)) of each token in nats."""
    probability_BMV = jax.nn.softmax(teacher_BMV.astype(jnp.float32))
    return -jnp.sum(probability_BMV * jax.nn.log_softmax(logits_BMV.astype(jnp.float32)), axis=-1)


class Objective(masked_text.Objective):
    """Predicts masked tokens, and what the moving average predicts there.

    Args:
        vlm: the model.
        alpha: weight of the moving average's prediction. 0.4 in the paper.
        ramp: shares of the training between which that weight rises from 0 to `alpha`; (0, 0): it is constant.
        arguments: of `masked_text.Objective`.
    """

    training_arguments = (*masked_text.Objective.training_arguments, "alpha", "ramp")

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> base.Needs:
        return super().needs(arguments)._replace(teacher=True)

    def __init__(self, vlm: VLM, *, alpha: float, ramp: tuple[float, float] = (0.0, 0.0), rngs: nnx.Rngs, **arguments):
        super().__init__(vlm, rngs=rngs, **arguments)
        self.alpha, self.ramp = alpha, tuple(ramp)

    def __call__(self, ctx: Context, key: jax.Array) -> tuple[tuple[base.Terms, ...], dict[str, jax.Array]]:
        logits_BMV, positions = self.predict(ctx)
        terms, metrics = self.loss(ctx, logits_BMV, positions)
        teacher_BMV, _ = ctx.teacher_head(self).predict(ctx.teacher)
        distilled_BM = distillation_loss(logits_BMV, jax.lax.stop_gradient(teacher_BMV))
        alpha = self.alpha * ctx.ramp(*self.ramp)
        return (terms._replace(weight=1.0 - alpha), base.Terms(distilled_BM, positions.valid_BM, alpha)), metrics
