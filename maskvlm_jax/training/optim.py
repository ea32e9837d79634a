"""Learning-rate schedule and AdamW with groups by parameter path."""

import re
from collections.abc import Sequence

import optax

from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.runtime.parameters import is_frozen, is_vector, map_by_path

# What may have been read in; the mask token never is.
ENCODERS = r"^vlm/(image|text)_encoder/(?!mask_token$)"
TEMPERATURE = r"^vlm/temperature$"


def make_schedule(*, lr: float, warmup_steps: int, steps: int, final_ratio: float) -> optax.Schedule:
    """Linear warm-up from 0 to `lr`, then a cosine to `lr * final_ratio` at `steps`."""
    if warmup_steps >= steps:
        raise UserError(f"optim.warmup_steps {warmup_steps} must be below steps {steps}; -1 takes a tenth of them")
    return optax.warmup_cosine_decay_schedule(0.0, lr, warmup_steps, steps, end_value=lr * final_ratio)


def make_optimizer(
    *,
    lr: float,
    encoder_lr: float,
    warmup_steps: int,
    steps: int,
    final_ratio: float,
    weight_decay: float,
    b1: float,
    b2: float,
    clip_norm: float,
    temperature_rate: float = 1.0,
    freeze: Sequence[str] = (),
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW (Loshchilov and Hutter 2019) with two learning rates of one shape.

    Args:
        lr: peak rate of cross-modality encoders, decoder and heads.
        encoder_lr: peak rate of the image and text encoder.
        warmup_steps, steps, final_ratio: of the schedule, see `make_schedule`.
        weight_decay: not for biases, norms, learned tokens, positions and the temperature.
        b1, b2: decay of the moments.
        clip_norm: gradients are scaled to at most this global norm.
        temperature_rate: times `lr`, the rate of the temperature.
        freeze: of parameters that stay as they are, see `parameters.is_frozen`; they have no moments. Their gradients
            must be zeros.
    Returns:
        the transformation and the schedule of `lr`.
    """
    schedule = make_schedule(lr=lr, warmup_steps=warmup_steps, steps=steps, final_ratio=final_ratio)
    ratio = encoder_lr / lr

    def scale(updates, params):
        rates = {ENCODERS: ratio, TEMPERATURE: temperature_rate}
        return map_by_path(
            lambda path, u: u * next((rate for group, rate in rates.items() if re.search(group, path)), 1.0), updates
        )

    tx = optax.chain(
        optax.clip_by_global_norm(clip_norm),
        _of_learning(optax.scale_by_adam(b1=b1, b2=b2), freeze),
        optax.add_decayed_weights(
            weight_decay,
            mask=lambda params: map_by_path(lambda path, _: not (is_vector(path) or is_frozen(path, freeze)), params),
        ),
        optax.stateless(scale),
        optax.scale_by_learning_rate(schedule),
    )
    return tx, schedule


def _of_learning(tx: optax.GradientTransformation, freeze: Sequence[str]) -> optax.GradientTransformation:
    """A transformation without a state for frozen parameters."""
    if not freeze:
        return tx
    return optax.masked(tx, lambda params: map_by_path(lambda path, _: not is_frozen(path, freeze), params))
