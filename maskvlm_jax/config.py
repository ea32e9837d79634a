"""What a config must satisfy, checked before anything is allocated, and how it becomes arguments."""

import json
import os
from typing import Any

import jax
from ml_collections import ConfigDict

from maskvlm_jax import ranges
from maskvlm_jax.data import masking
from maskvlm_jax.errors import UserError, few


def check(config: ConfigDict) -> None:
    """Cross-field rules.

    Raises:
        UserError: naming the fields, their values and what would fit.
    """
    ranges.check(flatten(config.to_dict()))
    _check_choices(config)
    _check_temperature(config)
    image = config.model.image
    if image.image_size % image.patch:
        raise UserError(f"model.image.patch {image.patch} does not divide model.image.image_size {image.image_size}")
    grid = image.image_size // image.patch
    if grid % config.masking.image_cell:
        raise UserError(
            f"masking.image_cell {config.masking.image_cell} does not divide the {grid} x {grid} grid of patches"
        )
    _check_blocks(config)
    _check_fusion(config)
    if config.evaluation.weights == "ema" and not config.optim.ema_decay:
        raise UserError("evaluation.weights=ema needs a moving average; set --config.optim.ema_decay=0.999")
    active = {label for label, objective in config.objectives.items() if objective.weight}
    if not active:
        raise UserError("every objective has weight 0: nothing to train")
    _check_objectives(config, active)


def _check_temperature(config: ConfigDict) -> None:
    from maskvlm_jax.models.vlm import TEMPERATURE_RANGE  # not above: a mistyped flag is told without Flax

    low, high = TEMPERATURE_RANGE
    if not low <= config.model.temperature <= high:
        raise UserError(f"model.temperature is {config.model.temperature:g}; give {low:g} to {high:g}")


_OBJECTIVE_CHOICES = {
    "norm": ("l1", "l2"),
    "region": ("all", "masked"),
    "negatives": ("hard", "random"),
    "pool": ("global", "local"),
    "other": ("clean", "masked"),
}
_HIDE_PATCHES = ("masked_image", "reconstruction", "masked_feature", "masked_representation")
_FUSE = (*_HIDE_PATCHES, "masked_text", "distilled_masked_text", "matching")


def _check_objectives(config: ConfigDict, active: set[str]) -> None:
    """What the objectives need of the model and of each other."""
    model = config.model
    for label in sorted(active):
        objective = config.objectives[label]
        embeds = "contrastive" in objective.name or objective.get("negatives") == "hard"
        if embeds and not model.embed:
            raise UserError(
                f"objectives.{label} needs a contrastive space, and model.embed is 0; leave it out"
                + (", or set its negatives to random" if "negatives" in objective else "")
            )
        hides = objective.name in _HIDE_PATCHES
        if model.image.hidden == "none" and (hides or objective.get("other") == "masked"):
            raise UserError(
                f"objectives.{label} reads masked pictures, and model.image.hidden is none; set it to token"
            )
        if hides and model.fusion.get("streams") == "text":
            raise UserError(f"objectives.{label} reads fused patches; set model.fusion.streams to both")
        if model.fusion.kind == "none" and objective.name in _FUSE:
            raise UserError(f"objectives.{label} reads both modalities fused, and model.fusion.kind is none")


def _check_blocks(config: ConfigDict) -> None:
    """Widths, heads and depths of the parts."""
    model, decoder = config.model, config.objectives.get("masked_image", {}).get("decoder", {})
    blocks = {f"model.{name}": model[name] for name in ("image", "text", "fusion")}
    blocks = {name: block for name, block in blocks.items() if "width" in block}
    if "width" in decoder:
        blocks["objectives.masked_image.decoder"] = decoder
    if len({block.width for block in blocks.values()}) > 1:
        widths = ", ".join(f"{name}.width {block.width}" for name, block in blocks.items())
        raise UserError(f"widths must be equal, they are {widths}")
    single_stream = model.fusion.kind in ("joint", "autoencoder")
    for name, block in blocks.items():
        if "heads" in block and block.width % block.heads:
            raise UserError(f"{name}.heads {block.heads} does not divide its width {block.width}")
        least = 0 if single_stream and name != "model.fusion" else 1
        if block.depth < least:
            raise UserError(f"{name}.depth is {block.depth}; give at least {least}")


def _check_fusion(config: ConfigDict) -> None:
    """Fields that a fusion shares with encoders and masks."""
    image, fusion, masking = config.model.image, config.model.fusion, config.masking
    if not image.class_token and (config.model.embed or fusion.kind == "cross"):
        raise UserError(
            "model.image.class_token=False goes with one stream and model.embed=0 only: nothing else reads it"
        )
    if fusion.kind == "autoencoder" and fusion.decoder.depth < 1:
        raise UserError(f"model.fusion.decoder.depth is {fusion.decoder.depth}; give at least 1")
    if masking.policy == "modality_aware" and not 0 <= masking.light_ratio <= min(
        masking.image_ratio, masking.text_ratio
    ):
        raise UserError(
            f"masking.light_ratio {masking.light_ratio} must not be above image_ratio {masking.image_ratio} "
            f"and text_ratio {masking.text_ratio}"
        )
    expected = {"class_tokens": int(image.class_token), "max_length": config.model.text.max_length}
    expected["patches"] = (image.image_size // image.patch) ** 2
    for name, value in expected.items():
        if name in fusion and fusion[name] != value:
            raise UserError(f"model.fusion.{name} is {fusion[name]}, the encoders have {value}; set it to that")
    if (image.hidden == "later") != (fusion.kind == "autoencoder"):
        raise UserError(f"model.image.hidden={image.hidden} does not go with model.fusion.kind={fusion.kind}")
    exact = masking.policy == "independent" and not masking.whole_word
    if (image.hidden == "later" and not exact) or (image.hidden == "drop" and masking.policy != "independent"):
        raise UserError("only masks of an exact count can be dropped: set masking.policy=independent, whole_word=False")
    if image.get("embedding", "patch") == "conv" and image.patch & (image.patch - 1):
        raise UserError(f"model.image.patch {image.patch} is no power of two, as model.image.embedding=conv needs")


def _check_choices(config: ConfigDict) -> None:
    """Values that are one of a few words."""
    image, fusion = config.model.image, config.model.fusion
    _check_choice(config.masking, "masking.text_corruption", ("mask", "bert"))
    _check_choice(config.masking, "masking.policy", ("independent", "modality_aware"))
    _check_choice(image, "model.image.hidden", ("token", "drop", "later", "none"))
    _check_choice(fusion, "model.fusion.kind", ("cross", "joint", "autoencoder", "none"))
    for block, key, choices in (
        (fusion, "model.fusion.streams", ("both", "text")),
        (image, "model.image.embedding", ("patch", "conv")),
        *(
            (objective, f"objectives.{label}.{key}", choices)
            for label, objective in config.objectives.items()
            for key, choices in _OBJECTIVE_CHOICES.items()
        ),
    ):
        if key.rsplit(".", 1)[1] in block:
            _check_choice(block, key, choices)
    _check_choice(config.data, "data.clean", ("none", "albef"))
    _check_choice(config.evaluation, "evaluation.rerank_score", ("auto", "itm", "itm+itc", "itm+cosine"))
    _check_choice(config.evaluation, "evaluation.weights", ("params", "ema"))
    _check_choice(config.model, "model.temperature_scale", ("log", "linear"))
    _check_choice(config.model.shared, "model.shared.remat", ("none", "dots", "full"))
    _check_choice(config.model.shared, "model.shared.dtype", ("auto", "float32", "bfloat16"))


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


_PATHS = ("root", "images", "captions", "checkpoint", "tokenizer", "out", "data_root")


def expand_paths(block: ConfigDict, *, all_of_them: bool = False) -> None:
    """Puts the home folder in the place of a leading ~ in the paths of a config: no shell has seen a flag's value."""
    for key, value in block.items():
        if isinstance(value, ConfigDict):
            expand_paths(value, all_of_them=key == "splits")
        elif (key in _PATHS or all_of_them) and isinstance(value, str):
            block[key] = os.path.expanduser(value)


def check_blocks_given(config: ConfigDict, defaults: ConfigDict, prefix: str = "") -> None:
    """Blocks that a flag gave as a whole, `--config.data={...}`, still hold all that is read of them.

    Args:
        defaults: the config file's own values.

    Raises:
        UserError: naming the block and what it lacks.
    """
    for name, default in defaults.items():
        path, given = prefix + name, config[name]
        if not isinstance(default, ConfigDict):
            continue
        if not isinstance(given, ConfigDict):
            raise UserError(f"{path} is {given!r}; it holds values of its own, set as --config.{path}.KEY=VALUE")
        if name == "splits":
            wrong = next((split for split, files in given.items() if not isinstance(files, str)), None)
            if wrong is not None:
                raise UserError(f"{path}.{wrong} is {given[wrong]!r}; give the name of a list or a pattern of files")
        elif name == "mixture" and given.keys() != default.keys():
            raise UserError(f"{path} cannot be set; --config=FILE:data=A+B mixes two sets")
        elif lacking := [key for key in default if key not in given]:
            raise UserError(f"{path} lacks {few(lacking)}; set single values, --config.{path}.KEY=VALUE, not the block")
        else:
            check_blocks_given(given, default, f"{path}.")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dict -> {"a.b": value}, as JSON would hold the values."""
    if not isinstance(config, dict):
        return {prefix: config}
    return {k: v for key, value in config.items() for k, v in flatten(value, f"{prefix}.{key}".lstrip(".")).items()}


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON holds it."""
    return json.loads(config.to_json())


def merge_evaluation(trained: ConfigDict, wanted: ConfigDict) -> ConfigDict:
    """The config of a run with the values that an evaluation sets: data, evaluation and mesh.

    Raises:
        UserError: values of one set for a run that was trained on a mixture of sets.
    """
    if trained.data.mixture and wanted.data.source is None:
        unset = (None, ConfigDict())
        given = [key for key in wanted.data if key not in trained.data and wanted.data[key] not in unset]
        if given:
            raise UserError(
                f"the run was trained on a mixture, which has no data.{given[0]}; name the set that is to be scored: "
                "--config=configs/evaluate.py:data=NAME"
            )

    def merge(block: ConfigDict, values: ConfigDict) -> None:
        for key, value in values.items():
            if isinstance(value, ConfigDict):
                if key not in block:
                    block[key] = ConfigDict()
                merge(block[key], value)
            elif value is not None:
                block[key] = value

    with trained.ignore_type(), trained.unlocked():
        if wanted.data.source is not None:
            trained.data.mixture, trained.data.splits = ConfigDict(), ConfigDict()
        for name in ("data", "evaluation", "mesh"):
            merge(trained[name], wanted[name])
    return trained
