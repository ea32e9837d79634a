"""Answers to questions as classes of a list: ℓ = Σ_a BCE(y_a, σ(MLP(z))_a), z the fused vector of picture and question.

The list and the score y_a of each of its answers, 0 to 1, are those of a field `answers`. The form is that of METER
(Dou et al. 2022, arXiv 2111.02387) and EVE (Chen et al. 2024, arXiv 2308.11971), the mean of the binary cross entropies
times their number, and so is the MLP: a dense layer twice as wide as the model, layer norm, GELU, a dense layer.
Biases start where one answer is thought right. Questions of which no answer is in the list do not count in training; in
evaluation they do.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from maskvlm_jax.models.activations import activate
from maskvlm_jax.models.layers import Dense, LayerNorm
from maskvlm_jax.models.vlm import VLM
from maskvlm_jax.objectives import base
from maskvlm_jax.objectives.context import Context
from maskvlm_jax.objectives.reduce import masked_mean
from maskvlm_jax.runtime.errors import UserError


def answer_loss(logits_BA: jax.Array, score_BA: jax.Array) -> jax.Array:
    """loss_B: the binary cross entropies of all answers, summed; in nats."""
    return jnp.sum(optax.sigmoid_binary_cross_entropy(logits_BA, score_BA), axis=1)


class Objective(base.Objective, base.AnswersQuestions):
    """The binary cross entropy of every answer of the list.

    Args:
        vlm: the model.
        shared: block arguments shared with the model.
        count: of the answers; 0 where a run has not made its list yet.
        label: the field of the answers' scores.
    """

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> base.Needs:
        return base.Needs(fusion=True, fields=(arguments.get("label", "answers"),))

    def __init__(self, vlm: VLM, *, shared: dict, count: int, label: str = "answers", rngs: nnx.Rngs):
        if count < 1:
            raise UserError(
                "how many answers are there? the list is made when a run begins; before, set "
                f"--config.data.fields.{label}.count"
            )
        width = vlm.text_encoder.width
        self.hidden = Dense(vlm.pair_width, 2 * width, init_std=shared["init_std"], exact=True, rngs=rngs)
        self.norm = LayerNorm(2 * width, eps=1e-5, dtype="float32")
        self.to_answer = Dense(2 * width, count, init_std=None, exact=True, rngs=rngs)
        self.to_answer.bias[...] = jnp.full((count,), -math.log(count), jnp.float32)
        self.label = label
        self.views = {"image": frozenset({"clean"}), "text": frozenset({"clean"})}

    def logits(self, ctx: Context) -> jax.Array:
        """logits_BA of the answers, float32."""
        return self.to_answer(activate(self.norm(self.hidden(ctx.pair_PD.astype(jnp.float32))), "gelu"))

    def answer_scores(self, ctx: Context, answers: base.AnswerTexts) -> jax.Array:
        """logits_BA: `answers` is the list of the field."""
        return self.logits(ctx)

    def __call__(self, ctx: Context, key: jax.Array) -> tuple[base.Terms, dict[str, jax.Array]]:
        logits_BA, score_BA = self.logits(ctx), ctx.batch[self.label]
        known_B = jnp.any(score_BA > 0, axis=1)
        told_B = jnp.take_along_axis(score_BA, jnp.argmax(logits_BA, axis=1)[:, None], axis=1)[:, 0]
        return base.Terms(answer_loss(logits_BA, score_BA), known_B), {"score": masked_mean(told_B, known_B)}
