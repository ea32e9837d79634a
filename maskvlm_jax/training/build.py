"""What a config and a mesh make of the model: its state, its step, and where arrays lie; nothing is allocated here."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from maskvlm_jax.data import examples, masking
from maskvlm_jax.data.batch import FEATURES
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime import sharding
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.runtime.parameters import is_frozen, map_by_path
from maskvlm_jax.training import optim, train_step
from maskvlm_jax.training.train_step import TrainState


class Built(NamedTuple):
    """What a config and a mesh make of the model: its graph definition, first state, step, and where arrays lie."""

    graphdef: nnx.GraphDef
    init: Callable[[], TrainState]
    step: Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]
    shardings: TrainState


def build(config: ConfigDict, mesh: jax.sharding.Mesh) -> Built:
    """Model, optimizer and jitted step of a config; nothing is allocated before `init` is called."""
    frozen_parameters(config)  # refuses expressions that match none
    options = config.optim.to_dict()
    accumulate, ema_decay, ema_ramp = (options.pop(name) for name in ("accumulate", "ema_decay", "ema_ramp"))
    tx, schedule = optim.make_optimizer(**options, steps=config.steps)
    arguments = model_arguments(config)
    graphdef, init, shardings = train_step.describe_state(
        lambda: Learner(**arguments, rngs=nnx.Rngs(config.seed)), tx, ema=bool(ema_decay), mesh=mesh
    )
    step = train_step.make_train_step(
        graphdef,
        tx,
        schedule,
        seed=config.seed,
        accumulate=accumulate,
        ema_decay=ema_decay,
        ema_ramp=ema_ramp,
        steps=config.steps,
        freeze=tuple(config.optim.freeze),
        shardings=shardings,
        mesh=mesh,
    )
    return Built(graphdef, init, step, shardings)


def described(config: ConfigDict, built: Built, mesh: jax.sharding.Mesh) -> tuple[TrainState, dict[str, Any]]:
    """Shapes, types and shardings of the step's arguments, with captions of the full length."""
    state = train_step.abstract_state(built.init, built.shardings)
    shapes = examples.batch_shapes(config)
    if config.data.cache_features:
        shape, dtype = feature_shape(config)
        shapes[FEATURES] = ((config.batch_size, *shape), dtype)
    return state, sharding.abstract_batch(shapes, mesh)


def feature_shape(config: ConfigDict) -> tuple[tuple[int, int], Any]:
    """((S, D), type) of what the image encoder makes of a picture."""
    image = config.model.image
    before = int(image.class_token) + int(image.distillation_token) + image.registers
    dtype = jnp.dtype(model_arguments(config)["model"]["shared"]["dtype"])
    return (before + (image.image_size // image.patch) ** 2, image.width), dtype


def frozen_parameters(config: ConfigDict) -> dict[str, int]:
    """Path -> size of each parameter that `config.optim.freeze` keeps as it is; nothing is allocated.

    Raises:
        UserError: an expression that is none, or that no path has; or nothing is left to learn.
    """
    freeze = tuple(config.optim.freeze)
    if not freeze:
        return {}
    sizes = parameter_sizes(config)
    for pattern in freeze:
        try:
            found = any(is_frozen(path, (pattern,)) for path in sizes)
        except (re.error, TypeError) as error:
            raise UserError(f"optim.freeze has {pattern!r}, which is no regular expression ({error})") from error
        if not found:
            raise UserError(
                f"optim.freeze has {pattern!r}, which matches no parameter's path; see parameters.txt of a run"
            )
    frozen = {path: size for path, size in sizes.items() if is_frozen(path, freeze)}
    if len(frozen) == len(sizes):
        raise UserError("optim.freeze holds every parameter: nothing is left to learn")
    return frozen


def image_encoder(config: ConfigDict) -> nnx.GraphDef:
    """The graph definition of the image encoder alone."""
    arguments = model_arguments(config)
    learner = nnx.eval_shape(lambda: Learner(**arguments, rngs=nnx.Rngs(config.seed)))
    return train_step.split_model(learner.vlm.image_encoder)[0]


def parameter_sizes(config: ConfigDict) -> dict[str, int]:
    """Path -> size of each parameter; nothing is allocated."""
    arguments = model_arguments(config)
    _, params = train_step.split_model(nnx.eval_shape(lambda: Learner(**arguments, rngs=nnx.Rngs(config.seed))))
    sizes: dict[str, int] = {}
    map_by_path(lambda path, leaf: sizes.setdefault(path, leaf.size), params)
    return sizes


def model_arguments(config: ConfigDict) -> dict[str, Any]:
    """Arguments of `Learner`; dtype "auto" becomes the device's."""
    model = config.model.to_dict()
    if model["shared"]["dtype"] == "auto":
        model["shared"]["dtype"] = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    image, options = config.model.image, config.masking
    return {
        "model": model,
        "objectives": config.objectives.to_dict(),
        "masked_patch_count": masking.masked_patch_count(
            image.image_size // image.patch, cell=options.image_cell, ratio=options.image_ratio
        ),
        "text_ratio": options.text_ratio,
        "masker": options.masker.to_dict(),
    }
