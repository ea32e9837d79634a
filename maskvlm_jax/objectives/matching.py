"""Image-text matching with in-batch hard negatives: MaskVLM (Kwon et al. 2023, arXiv 2208.02131), Eq. 3.

    ℓ = H( y, softmax FC( z_im^cross ∘ z_txt^cross ) )

over 3 pairs an example: the pair itself, a hard negative picture with its caption, its picture with a hard negative
caption. Negatives are drawn from softmax(h · similarity), by Gumbel-max on logits instead of a probability vector,
which can underflow to all zeros. Hardness h = 1 is ALBEF's rule (Li et al. 2021, arXiv 2107.07651) and the paper's,
h = 0 draws uniformly. Pictures and captions enter unmasked (the equation is in (I, T)).

Semi-hard negatives, after SyncMask (Song et al. 2024, arXiv 2404.01156), are drawn likewise, but among candidates that
are less similar than the pair itself: what is more similar may be a match that nobody wrote down. "Semi-hard" is
FaceNet's word (Schroff et al. 2015, arXiv 1503.03832) and means so there; how SyncMask draws is not in what is public
of it.

This is noise-contrastive estimation (Gutmann and Hyvärinen 2010) with the contrastive model as the noise: the best
log-odds of a pair are log p(T | I) − h · similarity + c. So a head that knows just what the contrastive loss knows
stays, at h = 1, near the loss of a constant answer, H(1/3) = 0.637, and what it knows is added to the similarity, not
put in its place: see the score formulas of `evaluators.retrieval`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from scipy.special import expit

from maskvlm_jax.models.layers import Dense
from maskvlm_jax.models.vlm import VLM
from maskvlm_jax.objectives import base
from maskvlm_jax.objectives.context import Context
from maskvlm_jax.objectives.reduce import masked_mean
from maskvlm_jax.runtime import sharding

# Two unmatched pairs for a matched one are what is trained on.
PRIOR_LOG_ODDS = -np.log(np.float32(2))


def probability(log_odds: np.ndarray) -> np.ndarray:
    """Of a pair's belonging together, where matched and unmatched are as likely before."""
    return expit(log_odds - PRIOR_LOG_ODDS)


def sample_hard_negatives(
    key: jax.Array, similarity_BB: jax.Array, same_pair_BB: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One negative column a row, drawn from softmax(similarity) over the columns that are not the same pair.

    Args:
        similarity_BB: logits; scaled by the hardness.

    Returns:
        negative_B: int32 column of each row; found_B: False where the row has no candidate.
    """
    logits_BB = jnp.where(same_pair_BB, -jnp.inf, similarity_BB)
    return jax.random.categorical(key, logits_BB, axis=1), jnp.any(~same_pair_BB, axis=1)


def semi_hard_only(similarity_BB: jax.Array, same_pair_BB: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What is not drawn where negatives are semi-hard.

    Args:
        similarity_BB: of each row with the columns; the positive's is on the diagonal.
        same_pair_BB: columns that are no candidates.

    Returns:
        excluded_BB: those, and all columns that are as similar as the positive or more; of a row that would have no
        candidate left those alone. less_B: whether a candidate of the row is less similar than the positive.
    """
    excluded_BB = same_pair_BB | (similarity_BB >= jnp.diagonal(similarity_BB)[:, None])
    less_B = jnp.any(~excluded_BB, axis=1)
    return jnp.where(less_B[:, None], excluded_BB, same_pair_BB), less_B


def matching_loss(logits_BG2: jax.Array, matched_BG: jax.Array) -> jax.Array:
    """nll_BG, the cross entropy of each pair in nats; G pairs an example, class 1 = matched."""
    return optax.softmax_cross_entropy_with_integer_labels(logits_BG2.astype(jnp.float32), matched_BG.astype(jnp.int32))


class Objective(base.Objective, base.ScoresPairs):
    """Tells matched from unmatched pairs.

    Args:
        vlm: the model.
        shared: block arguments shared with the model.
        negatives: "hard", drawn by similarity in the contrastive space; "semi_hard", likewise, of those that are less
            similar than the pair itself, where there are any; or "random", for a model that has no such space.
        hardness: h above; not read with negatives="random".
        ramp: shares of the training between which the hardness rises from 0 to `hardness`; (0, 0): it is constant.
        pool: "global", they are drawn from the whole batch, whichever devices hold it; "local", from the examples on
            the same device, as ALBEF does: no token sequence travels, and the draw depends on the number of devices.
    """

    choices: ClassVar = {"negatives": ("hard", "semi_hard", "random"), "pool": ("global", "local")}
    training_arguments = ("negatives", "hardness", "ramp", "pool")

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> base.Needs:
        return base.Needs(fusion=True, embedding=arguments.get("negatives", "hard") != "random", negatives=True)

    @classmethod
    def adds_similarity(cls, arguments: Mapping[str, Any]) -> bool:
        return arguments.get("negatives", "hard") != "random" and bool(arguments.get("hardness", 1.0))

    def __init__(
        self,
        vlm: VLM,
        *,
        shared: dict,
        negatives: str = "hard",
        hardness: float = 1.0,
        ramp: tuple[float, float] = (0.0, 0.0),
        pool: str = "global",
        rngs: nnx.Rngs,
    ):
        # Zeros: a head that has learned nothing says nothing, and the sum of the two logits, which no gradient
        # reaches, stays 0.
        self.to_match = Dense(vlm.pair_width, 2, init_std=None, exact=True, rngs=rngs)
        self.negatives, self.hardness, self.ramp, self.pool = negatives, hardness, tuple(ramp), pool
        self.views = {"image": frozenset({"clean"}), "text": frozenset({"clean"})}

    def classify(self, pair_PD: jax.Array) -> jax.Array:
        """logits_P2 (unmatched, matched) from the fused vector of a pair."""
        return self.to_match(pair_PD)

    def log_odds(self, pair_PD: jax.Array) -> jax.Array:
        """score_P, log p(matched) / p(unmatched) from the fused vector of a pair.

        Either logit alone is no score: the cross entropy trains their difference, never their sum.
        """
        logits_P2 = self.classify(pair_PD).astype(jnp.float32)
        return logits_P2[:, 1] - logits_P2[:, 0]

    def __call__(self, ctx: Context, key: jax.Array) -> tuple[base.Terms, dict[str, jax.Array]]:
        image_key, text_key = jax.random.split(key)
        same_pair_BB, shares = ctx.same_pair_BB, 1
        if self.pool == "local":
            shares = sharding.batch_shares()
            share_B = jnp.arange(len(same_pair_BB)) // (len(same_pair_BB) // shares)
            same_pair_BB |= share_B[:, None] != share_B[None, :]  # nor a negative of each other
        if self.negatives == "random":
            similarity_BB, hardness = jnp.zeros(same_pair_BB.shape), 0.0
        else:
            hardness = self.hardness * ctx.ramp(*self.ramp)
            similarity_BB = hardness * ctx.similarity_BB
        of_image_BB, of_text_BB, more = same_pair_BB, same_pair_BB.T, {}
        if self.negatives == "semi_hard":
            of_image_BB, less_image_B = semi_hard_only(ctx.similarity_BB, of_image_BB)
            of_text_BB, less_text_B = semi_hard_only(ctx.similarity_BB.T, of_text_BB)
            more["semi_hard"] = 0.5 * (jnp.mean(less_image_B) + jnp.mean(less_text_B))
        text_of_image_B, image_found_B = sample_hard_negatives(text_key, similarity_BB, of_image_BB)
        image_of_text_B, text_found_B = sample_hard_negatives(image_key, similarity_BB.T, of_text_BB)
        own, found_BG = ctx.own_rows, jnp.stack([text_found_B, image_found_B], axis=1)
        valid_BG = jnp.concatenate([jnp.ones_like(found_BG[:, :1]), found_BG], axis=1)[own]

        pair_PD = ctx.fuse_with_negatives(image_of_text_B[own], text_of_image_B[own], shares)
        logits_BG2 = self.classify(pair_PD).reshape(-1, 3, 2)
        matched_BG = jnp.broadcast_to(jnp.array([True, False, False]), logits_BG2.shape[:2])
        # Two thirds of the pairs are unmatched: a constant answer has accuracy 2/3, and 0 and 1 by class.
        correct_BG = ((logits_BG2[..., 1] > logits_BG2[..., 0]) == matched_BG).astype(jnp.float32)
        metrics = {
            "accuracy": masked_mean(correct_BG, valid_BG),
            "accuracy_matched": masked_mean(correct_BG, valid_BG & matched_BG),
            "accuracy_unmatched": masked_mean(correct_BG, valid_BG & ~matched_BG),
            "hardness": jnp.asarray(hardness, jnp.float32),
        }
        return base.Terms(matching_loss(logits_BG2, matched_BG), valid_BG), metrics | more
