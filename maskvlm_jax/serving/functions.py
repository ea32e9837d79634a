"""The compiled functions of the Python API: functions of (learner, *arrays)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from maskvlm_jax.models.pooling import pool
from maskvlm_jax.models.vision import normalised
from maskvlm_jax.models.vlm import normalize
from maskvlm_jax.objectives.base import PredictsPixels, PredictsWords, ScoresPairs
from maskvlm_jax.objectives.learner import Learner

Batch = Mapping[str, jax.Array]


def image_vectors(learner: Learner, batch: Batch) -> jax.Array:
    """image_BE before its length is made one."""
    return learner.vlm.project_image(learner.vlm.encode_image(normalised(batch["image"])))


def text_vectors(learner: Learner, batch: Batch) -> jax.Array:
    """text_BE before its length is made one."""
    valid_BL = batch["token_valid"]
    return learner.vlm.project_text(learner.vlm.text_encoder(batch["tokens"], valid_BL), valid_BL)


def unit_image_vectors(learner: Learner, batch: Batch) -> jax.Array:
    return normalize(image_vectors(learner, batch))


def unit_text_vectors(learner: Learner, batch: Batch) -> jax.Array:
    return normalize(text_vectors(learner, batch))


def cosines(learner: Learner, batch: Batch) -> jax.Array:
    """(B,) of the pairs of a batch."""
    return jnp.sum(unit_image_vectors(learner, batch) * unit_text_vectors(learner, batch), axis=1)


def image_tokens(learner: Learner, batch: Batch) -> jax.Array:
    """image_BSD in float32."""
    return learner.vlm.encode_image(normalised(batch["image"])).astype(jnp.float32)


def first_token(learner: Learner, batch: Batch) -> jax.Array:
    """image_BD, the class token."""
    return pool(learner.vlm.encode_image(normalised(batch["image"])), "first")


def mean_of_patches(learner: Learner, batch: Batch) -> jax.Array:
    """image_BD, the mean of the patches."""
    before = learner.vlm.image_encoder.prefix
    return pool(learner.vlm.encode_image(normalised(batch["image"])), "mean", before=before)


def text_tokens(learner: Learner, batch: Batch) -> jax.Array:
    """text_BLD in float32."""
    return learner.vlm.text_encoder(batch["tokens"], batch["token_valid"]).astype(jnp.float32)


def log_odds(learner: Learner, batch: Batch) -> jax.Array:
    """match_B of the pairs of a batch, see `objectives.matching`."""
    fusion, ctx = learner.vlm.fusion, learner.context(batch)
    pair_BD = fusion.match(fusion.pair_image(ctx.image_side()), fusion.pair_text(ctx.text_side()))
    return learner.offering(ScoresPairs).log_odds(pair_BD)


def word_log_probabilities(learner: Learner, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(B, M, V) at the hidden tokens, and which tokens they are, (B, M)."""
    logits_BMV, positions = learner.offering(PredictsWords).predict(learner.context(batch))
    return jax.nn.log_softmax(logits_BMV.astype(jnp.float32)), positions.ids_BM


def pixels(learner: Learner, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(B, M, F) normalised pixels of the hidden patches, and which patches they are, (B, M)."""
    pred_BMF, positions = learner.offering(PredictsPixels).predict(learner.context(batch))
    return pred_BMF, positions.ids_BM
