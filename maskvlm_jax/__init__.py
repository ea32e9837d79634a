"""Masked vision-language models in JAX: pre-training, evaluation and retrieval.

model = maskvlm_jax.load("runs/maskvlm-tiny-scenes")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskvlm_jax.serving.model import Model, load

__all__ = ["Model", "load"]


def __getattr__(name: str) -> Any:
    """`load` and `Model`, whose imports take seconds, when they are asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from maskvlm_jax.serving import model

    return getattr(model, name)
