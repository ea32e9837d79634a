"""Means: the only places that divide by a count, and they guard zero."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maskvlm_jax.objectives.base import Terms


def masked_mean(value: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean of `value` where `valid`; zero where nothing is valid."""
    valid = valid.astype(jnp.float32)
    return jnp.sum(value * valid) / jnp.maximum(jnp.sum(valid), 1.0)


def batch_mean_terms(value_BM: jax.Array, valid_BM: jax.Array, per_example: jax.Array | None = None) -> jax.Array:
    """Per-example terms whose mean over the batch is the mean over all valid entries of the batch.

    ℓ_b = B · Σ_m valid_bm value_bm / Σ_bm valid_bm, so that every masked position of the batch weighs the same, however
    many its example has. Zero where nothing is valid.

    Args:
        per_example: mean number of valid entries of an example, if the batch is a part of a larger one; None: that of
            the batch itself.
    """
    valid_BM = valid_BM.astype(jnp.float32)
    if per_example is None:
        per_example = jnp.sum(valid_BM) / len(valid_BM)
    return jnp.sum(value_BM * valid_BM, axis=1) / jnp.maximum(per_example, 1.0 / len(valid_BM))


class Count(NamedTuple):
    """How many values of a term count, 0 where all of them do, which is then known without counting; and the sum of its
    factor over them, None where it has none."""

    values: jax.Array
    factor_K: jax.Array | None = None


def count(terms: Terms) -> Count:
    """What the mean of a term is taken over."""
    values = jnp.zeros((), jnp.float32) if terms.valid is None else jnp.sum(terms.valid.astype(jnp.float32))
    if terms.factor is None:
        return Count(values)
    counted = jnp.where(terms.valid[..., None], terms.factor, 0.0)
    return Count(values, jnp.sum(counted, axis=tuple(range(counted.ndim - 1))))


def loss_of(terms: Sequence[Terms], counts: Sequence[Count] | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of an objective, Σ weight · mean, and the means that have a name.

    Args:
        counts: of each of the terms, means over the examples of the whole batch, if this is a part of it; None: those
            of the terms themselves.
    """
    losses, means = [], {}
    for number, one in enumerate(terms):
        value_B = one.value
        if one.factor is not None:
            of_all = count(one) if counts is None else counts[number]
            mean_K = of_all.factor_K / jnp.maximum(of_all.values, 1e-6)
            value_B = jnp.sum(one.value * jax.lax.stop_gradient(mean_K), axis=-1)
        if one.valid is not None:
            per_example = None if counts is None else counts[number].values
            flat = (len(one.value), -1)
            value_B = batch_mean_terms(value_B.reshape(flat), one.valid.reshape(flat), per_example)
        if one.name:
            means[one.name] = jnp.mean(value_B)
        losses.append(one.weight * value_B)
    return jnp.mean(sum(losses[1:], start=losses[0])), means
