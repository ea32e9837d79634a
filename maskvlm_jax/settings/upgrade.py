"""config.json of older releases: the values that new keys must have for a run to stay what it was.

A key that is added to a config gets its line here, so that workdirs begun before it go on, are scored and are tuned.
"""

from pathlib import Path
from typing import Any

from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.runtime.files import read_json, write_json

# Keys that flags of older releases named, and where their values are now.
_FROM_ENCODERS = "not given: the fusion has it from the encoders"
RENAMED = {
    "evaluation.during": "evaluation.validation_split",
    "evaluation.also": "evaluation.extra_splits",
    "data.scored": "data.evaluation_set",
    "model.fusion.class_tokens": _FROM_ENCODERS,
    "model.fusion.patches": _FROM_ENCODERS,
    "model.fusion.max_length": _FROM_ENCODERS,
}

FORMAT = 6  # of config.json; raise it with every key that is added or that changes its meaning
_KEY = "format"


def read(path: Path) -> dict[str, Any]:
    """The config of a workdir, as this release would have written it.

    Raises:
        UserError: it does not exist, is damaged, or is of no run.
    """
    config = read_json(path)
    if not isinstance(config, dict) or not {"model", "data", "optim"} <= config.keys():
        raise UserError(f"{path} is not the config of a run; give another folder")
    return upgrade(config)


def write(path: Path, config: dict[str, Any]) -> None:
    """Writes a config with the number of its format."""
    write_json(path, {_KEY: FORMAT, **config})


def upgrade(config: dict[str, Any]) -> dict[str, Any]:
    """A config of any format in that of this release.

    Raises:
        UserError: it is of a later one.
    """
    config = dict(config)
    found = config.pop(_KEY, 1)
    if found not in range(1, FORMAT + 1):
        raise UserError(f"config.json has format {found}, written by a later release: this one reads up to {FORMAT}")
    for number in range(found, FORMAT):
        _STEPS[number](config)
    return config


def _to_2(config: dict[str, Any]) -> None:
    """Ramps, epochs, the temperature's logarithm, scores of re-ranking by log-odds."""
    config.setdefault("epochs", 0.0)
    config.setdefault("checkpoint_step", "latest")
    config["optim"] = {"temperature_rate": 1.0, "ema_ramp": False} | config["optim"]
    config["model"] = {"temperature_scale": "linear"} | config["model"]
    evaluation = {"choose_images": 1_000} | config["evaluation"]
    if evaluation.get("rerank_score") == "itm+itc":
        evaluation["rerank_score"] = "itm+cosine"
    config["evaluation"] = evaluation
    for objective in config["objectives"].values():
        if objective["name"] == "matching":
            objective |= {"hardness": 1.0, "ramp": [0.0, 0.0]}
        elif objective["name"] in ("momentum_contrastive", "distilled_masked_text"):
            objective |= {"ramp": [0.0, 0.0]}
        elif objective["name"] == "masked_feature":  # was a sum over the width, is divided by its root
            objective["weight"] *= config["model"]["image"]["width"] ** 0.5


def _to_3(config: dict[str, Any]) -> None:
    """The choice of deterministic operations."""
    config.setdefault("deterministic", False)


def _to_4(config: dict[str, Any]) -> None:
    """Evaluators by name, blocks and tokens that are described in full, keys that say what they are, each fact once."""
    during = {"retrieval": True, "matching": True, "probes": False, "figures": False}
    _rename(config["evaluation"], during="validation_split", also="extra_splits")
    config.setdefault("init", {"image": "", "text": "", "image_family": "auto", "text_family": "auto"})
    config["evaluation"].setdefault("memory_gb", 4.0)
    _rename(config["data"], scored="evaluation_set")
    config["data"] = {"fields": {}, "cache_features": ""} | config["data"]
    config.setdefault("evals", {name: {"name": name, "during": value} for name, value in during.items()})
    model, objectives = config["model"], config["objectives"]
    model.setdefault("pooling", {"image": "first", "text": "first", "layers": 1})
    config["optim"].setdefault("freeze", [])
    blocks = {"eps": 1e-5, "activation": "gelu"}
    model["image"] = blocks | {"norm": "pre", "eps": 1e-6, "kind": "dense"} | model["image"]
    model["text"] = blocks | {"kind": "dense", "mask_id": -1} | model["text"]
    config["masking"].setdefault("masker", {})
    if model["fusion"]["kind"] != "none":
        model["fusion"] = blocks | {"block_kind": "dense"} | model["fusion"]
    for objective in objectives.values():
        if "heads" in objective.get("decoder", {}):
            objective["decoder"] = blocks | {"kind": "dense"} | objective["decoder"]
    model["image"] |= {"distillation_token": False, "registers": 0, "norm_before": False}
    if model["image"]["hidden"] == "later":
        model["image"]["hidden"] = "drop_in_fusion"
    for name in ("class_tokens", "patches", "max_length"):  # of the fusion, which has them from the encoders
        model["fusion"].pop(name, None)


def _to_5(config: dict[str, Any]) -> None:
    """Another place of the tasks, whose parts are named by it."""
    for block in (config["objectives"], config["evals"], config["data"]["fields"]):
        for part in block.values():
            part["name"] = part["name"].replace("maskvlm_jax.tasks.", "maskvlm_jax.training.tasks.")


def _to_6(config: dict[str, Any]) -> None:
    """Dropout of the heads of the contrastive space, and centres."""
    config["model"]["pooling"] = {"dropout": 0.0, "centred": False} | config["model"]["pooling"]


def _rename(block: dict[str, Any], **names: str) -> None:
    """Gives keys their new names."""
    for old, new in names.items():
        if old in block:
            block[new] = block.pop(old)


_STEPS = {1: _to_2, 2: _to_3, 3: _to_4, 4: _to_5, 5: _to_6}
