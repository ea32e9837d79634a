"""Configs as plain values: flattened, as JSON, with whole paths and blocks, and an evaluation's over those of a run."""

import json
import os
from typing import Any

from ml_collections import ConfigDict

from maskvlm_jax.runtime.errors import UserError, few

_PATHS = ("root", "images", "captions", "checkpoint", "tokenizer", "out", "data_root", "cache_features")
_BLOCKS_OF_PATHS = ("splits", "init")


def expand_paths(block: ConfigDict, *, all_of_them: bool = False) -> None:
    """Puts the home folder in the place of a leading ~ in the paths of a config: no shell has seen a flag's value."""
    for key, value in block.items():
        if isinstance(value, ConfigDict):
            expand_paths(value, all_of_them=key in _BLOCKS_OF_PATHS)
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
        elif name == "masker" and not given:
            continue  # none, where a recipe has one
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
    """The config of a run with the values that an evaluation sets: data, evaluation, evals and mesh; its own evals stay
    where `wanted.evals_of_run`.

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
            trained.data.mixture, trained.data.splits, trained.data.fields = ConfigDict(), ConfigDict(), ConfigDict()
        if not wanted.evals_of_run:
            trained.evals = ConfigDict()
        for name in ("data", "evaluation", "evals", "mesh"):
            merge(trained[name], wanted[name])
    return trained
