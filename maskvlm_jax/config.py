"""What a config must satisfy, checked before anything is allocated, and how it becomes arguments."""

import json
import os
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from maskvlm_jax.data import masking
from maskvlm_jax.errors import UserError

# Keys that may differ between the runs that share a workdir: they change no parameter.
FREE_KEYS = (
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "data.root",
    "data.workers",
    "data.threads",
    "data.max_missing",
    "data.max_broken",
    "evaluation",
    "mesh",
    "model.shared.remat",
    "model.shared.unroll",
)


def check(config: ConfigDict) -> None:
    """Cross-field rules.

    Raises:
        UserError: naming the fields, their values and what would fit.
    """
    image, text, fusion = config.model.image, config.model.text, config.model.fusion
    if image.image_size % image.patch:
        raise UserError(f"model.image.patch {image.patch} does not divide model.image.image_size {image.image_size}")
    grid = image.image_size // image.patch
    if grid % config.masking.image_cell:
        raise UserError(
            f"masking.image_cell {config.masking.image_cell} does not divide the {grid} x {grid} grid of patches"
        )
    decoder = config.objectives.masked_image.decoder
    blocks = {
        "model.image": image,
        "model.text": text,
        "model.fusion": fusion,
        "objectives.masked_image.decoder": decoder,
    }
    if len({block.width for block in blocks.values()}) > 1:
        widths = ", ".join(f"{name}.width {block.width}" for name, block in blocks.items())
        raise UserError(f"widths must be equal, they are {widths}")
    for name, block in blocks.items():
        if block.width % block.heads:
            raise UserError(f"{name}.heads {block.heads} does not divide its width {block.width}")
        if block.depth < 1:
            raise UserError(f"{name}.depth is {block.depth}; give at least 1")
    for name in ("image_ratio", "text_ratio"):
        if not 0.0 < config.masking[name] < 1.0:
            raise UserError(f"masking.{name} is {config.masking[name]}; give a share between 0 and 1")
    _check_choice(config.masking, "masking.text_corruption", ("mask", "bert"))
    _check_choice(config.objectives.masked_image, "objectives.masked_image.norm", ("l1", "l2"))
    _check_choice(config.evaluation, "evaluation.rerank_score", ("itm", "itm+itc"))
    _check_choice(config.evaluation, "evaluation.weights", ("params", "ema"))
    _check_choice(config.model.shared, "model.shared.remat", ("none", "dots", "full"))
    _check_choice(config.model.shared, "model.shared.dtype", ("auto", "float32", "bfloat16"))
    if config.evaluation.weights == "ema" and not config.optim.ema_decay:
        raise UserError("evaluation.weights=ema needs a moving average; set --config.optim.ema_decay=0.999")
    for name in ("steps", "batch_size", "log_every", "eval_every", "checkpoint_every", "keep_checkpoints"):
        if config[name] < 1:
            raise UserError(f"{name} is {config[name]}; give at least 1")
    if not any(objective.weight for objective in config.objectives.values()):
        raise UserError("every objective has weight 0: nothing to train")


def _check_choice(block: ConfigDict, name: str, allowed: tuple[str, ...]) -> None:
    value = block[name.rsplit(".", 1)[1]]
    if value not in allowed:
        raise UserError(f"{name} is {value!r}; choose among {', '.join(allowed)}")


def model_arguments(config: ConfigDict) -> dict[str, Any]:
    """Arguments of `Pretrainer`; dtype "auto" becomes the device's."""
    model = config.model.to_dict()
    if model["shared"]["dtype"] == "auto":
        model["shared"]["dtype"] = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    image, options = config.model.image, config.masking
    return {
        "model": model,
        "objectives": config.objectives.to_dict(),
        "masked_patches": masking.masked_patch_count(
            image.image_size // image.patch, cell=options.image_cell, ratio=options.image_ratio
        ),
        "text_ratio": options.text_ratio,
    }


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dict -> {"a.b": value}, as JSON would hold the values."""
    if not isinstance(config, dict):
        return {prefix: config}
    return {k: v for key, value in config.items() for k, v in flatten(value, f"{prefix}.{key}".lstrip(".")).items()}


def differing_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Keys, FREE_KEYS aside, whose values differ between two configs."""
    old, new = flatten(old), flatten(new)
    free = tuple(f"{key}." for key in FREE_KEYS)
    return sorted(
        key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and not f"{key}.".startswith(free)
    )


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON holds it."""
    return json.loads(config.to_json())


def claim_workdir(workdir: Path, config: ConfigDict) -> None:
    """Writes config.json into a new workdir; a workdir of another run is refused.

    Raises:
        UserError: the folder cannot be written, or its config differs in a key that matters.
    """
    path, wanted = workdir / "config.json", to_json(config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            differing = differing_keys(read_json(path), wanted)
            if differing:
                raise UserError(
                    f"{workdir} belongs to a run with other values of {', '.join(differing)}; "
                    "use another --workdir, or the same values to go on"
                )
        write_json(path, wanted)
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be written: {error.strerror}; choose another --workdir") from error


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: it does not exist or is damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file in one step: a killed process leaves the old file or the new one."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


def merge_evaluation(trained: ConfigDict, wanted: ConfigDict) -> ConfigDict:
    """The config of a run with the values that an evaluation sets: data, evaluation and mesh."""

    def merge(block: ConfigDict, values: ConfigDict) -> None:
        for key, value in values.items():
            if isinstance(value, ConfigDict):
                merge(block[key], value)
            elif value is not None:
                block[key] = value

    with trained.ignore_type(), trained.unlocked():
        for name in ("data", "evaluation", "mesh"):
            merge(trained[name], wanted[name])
    return trained
