"""The loss that a learner makes of an objective's terms."""

from typing import Any

import jax

from maskvlm_jax.objectives.base import Terms
from maskvlm_jax.objectives.reduce import loss_of


def mean(value: Any, valid: Any = None) -> jax.Array:
    """The mean of the values that count."""
    return mean_of(Terms(value, valid))


def mean_of(terms: Terms | tuple[Terms, ...]) -> jax.Array:
    """The loss of one or several terms."""
    return loss_of((terms,) if isinstance(terms, Terms) else terms)[0]
