"""How long a run is: steps, epochs, and the periods that follow from them."""

from ml_collections import ConfigDict

from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import ranges


def resolve_steps(config: ConfigDict, examples: int | None) -> None:
    """Puts numbers in the place of what follows from others: steps from epochs, periods and warm-up from steps.

    Args:
        examples: of the training data; None where it is not known.

    Raises:
        UserError: neither steps nor epochs are given, or the data's size is not known.
    """
    if not config.steps:
        if not config.epochs:
            raise UserError("steps and epochs are both 0; give --config.steps or --config.epochs")
        if examples is None:
            raise UserError(f"the steps of {config.epochs:g} epochs follow from the data; give --config.steps")
        steps = config.epochs * examples / config.batch_size
        if steps > ranges.LARGEST:
            raise UserError(f"{config.epochs:g} epochs are {steps:g} steps; give fewer, at most {ranges.LARGEST} steps")
        config.steps = max(1, round(steps))
    if config.eval_every < 0:
        config.eval_every = max(1, config.steps // 50)
    if config.optim.warmup_steps < 0:
        config.optim.warmup_steps = config.steps // 10


def set_aside(config: ConfigDict, given: set[str]) -> None:
    """Where a flag gives one of steps and epochs, the other's default does not count.

    Args:
        given: keys that flags gave.

    Raises:
        UserError: both were given.
    """
    if "steps" not in config or "epochs" not in config:
        return
    if {"steps", "epochs"} <= given and config.steps and config.epochs:
        raise UserError(f"steps is {config.steps} and epochs {config.epochs:g}; give one of the two")
    if "steps" in given and config.steps:
        config.epochs = 0.0
    elif "epochs" in given and config.epochs:
        config.steps = 0
