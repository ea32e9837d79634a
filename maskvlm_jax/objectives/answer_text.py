"""Answers to questions as texts, by a decoder over the fused question: ALBEF (Li et al. 2021, arXiv 2107.07651).

    ℓ = Σ_a share(a) · Σ_t − log p(a_t | a_<t, fused question and picture)

over the different answers a that people gave, teacher-forced. In evaluation the answers of a list are ranked: those
whose first tokens are the likeliest are compared by their whole log-likelihood.

Differs from ALBEF's release: the ranking there counts the first token twice; its momentum distillation is left out.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.attention import First
from maskvlm_jax.models.block import BlockSpec
from maskvlm_jax.models.cross import Memory
from maskvlm_jax.models.decoder import TextDecoder, log_likelihood
from maskvlm_jax.models.layers import interleave
from maskvlm_jax.models.vlm import VLM
from maskvlm_jax.objectives import base
from maskvlm_jax.objectives.context import Context


class Objective(base.Objective, base.AnswersQuestions):
    """The likelihood of the answers that people gave, each weighted by the share of the people.

    Args:
        vlm: the model.
        decoder: values of the spec of the decoder's blocks, and their depth.
        shared: block arguments shared with the model.
        label: the field of the answers' tokens.
        candidates: answers of the list that are compared by their whole log-likelihood (ALBEF: 128).
    """

    training_arguments = ("candidates", "label")
    starts_from: ClassVar = {"decoder/stack": "fusion/text_stream"}

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> base.Needs:
        return base.Needs(fusion=True, fields=(arguments.get("label", "answer_text"),))

    def __init__(
        self,
        vlm: VLM,
        *,
        decoder: dict,
        shared: dict,
        label: str = "answer_text",
        candidates: int = 128,
        rngs: nnx.Rngs,
    ):
        spec, options = BlockSpec.split(decoder | shared)
        self.decoder = TextDecoder(vlm.text_encoder, spec, **options, rngs=rngs)
        self.label, self.candidates = label, candidates
        self.views = {"image": frozenset({"clean"}), "text": frozenset({"clean"})}

    def __call__(self, ctx: Context, key: jax.Array) -> tuple[base.Terms, dict[str, jax.Array]]:
        share_BG = ctx.batch[f"{self.label}_share"]
        tokens_RL, valid_RL = (_rows(ctx.batch[f"{self.label}_{name}"]) for name in ("tokens", "valid"))
        memory = Memory.interleave([self._memory(ctx)] * share_BG.shape[1])
        logits_RLV = self.decoder(ctx.vlm.text_encoder, tokens_RL, memory, ctx.key("answer_text"))
        nll_BG = -log_likelihood(logits_RLV, tokens_RL, valid_RL).reshape(share_BG.shape)
        return base.Terms(jnp.sum(share_BG * nll_BG, axis=1), jnp.any(share_BG > 0, axis=1)), {}

    def answer_scores(self, ctx: Context, answers: base.AnswerTexts) -> jax.Array:
        """score_BA: log-likelihoods of the candidates, -inf of all others."""
        tokens_AL, valid_AL = answers
        memory, encoder = self._memory(ctx), ctx.vlm.text_encoder
        size = len(ctx.batch["tokens"])
        start_B1 = jnp.broadcast_to(tokens_AL[:1, :1], (size, 1))
        first_BV = self.decoder(encoder, start_B1, memory)[:, 0]
        ids_BK = jax.lax.top_k(first_BV[:, tokens_AL[:, 1]], min(self.candidates, len(tokens_AL)))[1]

        def compared(ids_B: jax.Array) -> jax.Array:
            tokens_BL = tokens_AL[ids_B]
            return log_likelihood(self.decoder(encoder, tokens_BL, memory), tokens_BL, valid_AL[ids_B])

        # One candidate of every question at a time: no memory is held once for each.
        found_KB = jax.lax.map(compared, ids_BK.T)
        score_BA = jnp.full((size, len(tokens_AL)), -jnp.inf, jnp.float32)
        return score_BA.at[jnp.arange(size)[:, None], ids_BK].set(found_KB.T)

    def _memory(self, ctx: Context) -> Memory:
        """All positions of the fused question, as the decoder reads them."""
        return self.decoder.memory(ctx.fuse_text("clean"), First.of(ctx.batch["token_valid"]))


def _rows(x_BGL: jax.Array) -> jax.Array:
    """The answers of all examples, one a row, as `interleave` orders them."""
    return interleave([x_BGL[:, number] for number in range(x_BGL.shape[1])])
