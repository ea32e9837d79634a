"""Which positions are masked or visible, and how many of them an array has room for."""

import math

import jax
import jax.numpy as jnp

from maskvlm_jax.models.layers import Positions


def positions_where(chosen_BS: jax.Array, count: int) -> Positions:
    """The first `count` positions at which `chosen_BS` is True."""
    chosen_BM, ids_BM = jax.lax.top_k(chosen_BS.astype(jnp.int32), count)  # ties: lowest position first
    return Positions(ids_BM, chosen_BM > 0)


def masked_token_capacity(length: int, ratio: float) -> int:
    """Most tokens that can be masked in a sequence of `length` with two special tokens."""
    return max(1, math.ceil(ratio * (length - 2)))


def visible_token_capacity(length: int, ratio: float) -> int:
    """Most tokens that can stay visible in a sequence of `length` in which an exact share is masked."""
    return length - masked_token_capacity(length, ratio)
