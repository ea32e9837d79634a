"""Means: the only places that divide by a count, and they guard zero."""

import jax
import jax.numpy as jnp


def masked_mean(value: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean of `value` where `valid`; zero where nothing is valid."""
    valid = valid.astype(jnp.float32)
    return jnp.sum(value * valid) / jnp.maximum(jnp.sum(valid), 1.0)


def batch_mean_terms(value_BM: jax.Array, valid_BM: jax.Array, per_example: jax.Array | None = None) -> jax.Array:
    """Per-example terms whose mean over the batch is the mean over all valid entries of the batch.

    ℓ_b = B · Σ_m valid_bm value_bm / Σ_bm valid_bm, so that every masked position of the batch weighs the same, however
    many its example has. Zero where nothing is valid.

    Args:
        per_example: mean number of valid entries of an example, where the batch is a part of a larger one; that of the
            batch itself where None.
    """
    valid_BM = valid_BM.astype(jnp.float32)
    if per_example is None:
        per_example = jnp.sum(valid_BM) / len(valid_BM)
    return jnp.sum(value_BM * valid_BM, axis=1) / jnp.maximum(per_example, 1.0 / len(valid_BM))
