"""Masked language modelling with momentum distillation: ALBEF (Li et al. 2021, arXiv 2107.07651), Eq. 7.

    ℓ = (1 − α) H( y, p(I, T_m) ) + α H( p̂(I, T_m), p(I, T_m) )

p̂: the prediction of the moving average for the same masked caption.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.context import Context
from maskvlm_jax.models.vlm import VLM
from maskvlm_jax.objectives import masked_text
from maskvlm_jax.objectives.reduce import batch_mean_terms


def distillation_loss(
    logits_BMV: jax.Array, teacher_BMV: jax.Array, valid_BM: jax.Array, per_example: jax.Array | None = None
) -> jax.Array:
    """loss_B: H(softmax(teacher), softmax(logits)) averaged over every masked token of the batch."""
    probability_BMV = jax.nn.softmax(teacher_BMV.astype(jnp.float32))
    nll_BM = -jnp.sum(probability_BMV * jax.nn.log_softmax(logits_BMV.astype(jnp.float32)), axis=-1)
    return batch_mean_terms(nll_BM, valid_BM, per_example)


class Objective(masked_text.Objective):
    """Predicts masked tokens, and what the moving average predicts there.

    Args:
        vlm: the model.
        alpha: weight of the moving average's prediction. 0.4 in the paper.
        ramp: shares of the training between which that weight rises from 0 to `alpha`; (0, 0): it is constant.
        arguments: of `masked_text.Objective`.
    """

    reads_teacher = True

    def __init__(self, vlm: VLM, *, alpha: float, ramp: tuple[float, float] = (0.0, 0.0), rngs: nnx.Rngs, **arguments):
        super().__init__(vlm, rngs=rngs, **arguments)
        self.alpha, self.ramp = alpha, tuple(ramp)

    def __call__(self, ctx: Context, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits_BMV, positions = self.predict(ctx)
        loss_B, metrics = self.loss(ctx, logits_BMV, positions)
        teacher_BMV, _ = ctx.twin(self).predict(ctx.teacher)
        per_example, target_BMV = ctx.per_example("text_masked"), jax.lax.stop_gradient(teacher_BMV)
        distilled_B = distillation_loss(logits_BMV, target_BMV, positions.valid_BM, per_example)
        alpha = self.alpha * ctx.ramp(*self.ramp)
        return (1.0 - alpha) * loss_B + alpha * distilled_B, metrics
