"""A run's model as a folder that others read, and that a run can start from.

config.json, export.json      what the model is, and what it was made of
model.safetensors             all weights, by the names of `array_names`
tokenizer/, preprocessor_config.json
image_encoder/, text_encoder/ the encoders as transformers reads them, where it can
torch_model.py                the model in PyTorch, where it is written for it
*.stablehlo                   compiled programs for serving, where they are asked for
README.md                     a model card
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.models.pretrained import encoders
from maskvlm_jax.objectives.base import TrainsEmbeddings, objective_of
from maskvlm_jax.runtime import buckets, files, sharding
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.runtime.parameters import map_by_path
from maskvlm_jax.serving.exports import encoder_folders, model_card, serving_programs
from maskvlm_jax.serving.exports.encoder_folders import Folder
from maskvlm_jax.settings import plain_values, rules, upgrade
from maskvlm_jax.settings.workdir import EXPORT
from maskvlm_jax.training import array_names, stored_model
from maskvlm_jax.training import lineage as lineages
from maskvlm_jax.training.exported import Exported, is_export

TORCH_MODEL = Path(__file__).with_name("torch_model.py")  # never imported here: it needs PyTorch


class Model(NamedTuple):
    """A checkpoint's model on this machine: its config, parameters as nested dict of NumPy arrays, and their origin."""

    config: ConfigDict
    params: Any
    record: dict[str, Any]


def export(workdir: str, out: str, *, step: str = "latest", weights: str = "params", stablehlo: bool = False) -> None:
    """Writes the model of a workdir into a folder, whole or not at all, and tells what went into it.

    Args:
        step: "latest", "best" or a number.
        weights: "params" or "ema", their moving average.
        stablehlo: write programs for serving too.

    Raises:
        UserError: there is no such checkpoint, or something lies where the folder is to be.
    """
    source, target = buckets.folder(workdir), buckets.folder(out)
    if target.exists():
        raise UserError(f"{out} exists; give a folder that does not, or remove it")
    model = _load(source, step, weights)
    tokenizer = tokenizers.load(source / "tokenizer")
    with buckets.making(target) as folder:
        folder.mkdir(parents=True)
        arrays = array_names.by_name(model.params)
        told = [*_weights(arrays, folder), *_written(model, source, folder, tokenizer.pad_id)]
        if stablehlo:
            told += serving_programs.write(model.config, arrays, folder)
        result = _result_of(source, model.record)
        if result is not None:
            files.write_json(folder / "result.json", result)
        count = sum(value.size for value in arrays.values())
        embeds = objective_of(rules.active_objectives(model.config), TrainsEmbeddings) is not None
        card = model_card.text(model.config, model.record, result, folder, parameters=count, embeds=embeds)
        files.write_text(folder / "README.md", card)
    print("\n".join(told))
    print(f"\n{model.record['run']}, step {model.record['step']}, is in {out}; README.md there says how to use it")


def _load(source: Path, step: str, weights: str) -> Model:
    mesh = sharding.make_mesh(data=1, fsdp=1, model=1, devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        found = stored_model.read(source, mesh, step=step, weights=weights)
        config = found.config
        config.evaluation.weights = "params"  # the only ones that an export has
        lineage = lineages.lineage_of(config, source, found.step, found.params, found.progress, config.data)
    record = lineage | {"weights": weights, "progress": found.progress.as_dict()}
    if is_export(source):
        record |= {key: Exported(source).record[key] for key in ("checkpoint", "weights")}
    record["initialised_from"] = _public(record["initialised_from"])
    return Model(_without_places(config), jax.device_get(found.params), record)


# Values of a config that may be folders of the machine that it was trained on.
_PLACES = r"checkpoint|init\.(image|text)|data\.(mixture\.[^.]+\.)?(root|images|captions|splits\..+)|data\.tokenizer"


def _without_places(config: ConfigDict) -> ConfigDict:
    """The config with the last part of each path from the root."""
    config = config.copy_and_resolve_references()
    for key, value in plain_values.flatten(config.to_dict()).items():
        if re.fullmatch(_PLACES, key) and isinstance(value, str):
            config.update_from_flattened_dict({key: _public_name(value)})
    return config


def _public_name(path: str) -> str:
    """A path without where it lies on this machine: the last part of one from the root or from home."""
    return path.rstrip("/").rpartition("/")[2] if path.startswith(("/", "~")) else path


def _public(origin: Any) -> Any:
    """Where parameters started, without places: a run's folder and step, or encoders by modality."""
    if isinstance(origin, str):
        return _public_name(origin)
    return {modality: one | {"name": _public_name(one["name"])} for modality, one in origin.items()}


def _weights(arrays: Mapping[str, np.ndarray], folder: Path) -> Iterator[str]:
    """Writes the weights; yields a line about them."""
    _write_arrays(folder / "model.safetensors", arrays)
    yield f"model.safetensors   {len(arrays)} arrays, {sum(value.size for value in arrays.values()):,} parameters"


def _written(model: Model, source: Path, folder: Path, pad_id: int) -> Iterator[str]:
    """Writes all but the weights as a whole, programs and model card; yields a line about each part."""
    config = plain_values.to_json(model.config)
    upgrade.write(folder / "config.json", config)
    files.write_json(folder / EXPORT, model.record)
    files.write_json(folder / "preprocessor_config.json", encoder_folders.preprocessor(config["model"]["image"]))
    if (source / encoders.FILE).is_file():
        origins = files.read_json(source / encoders.FILE)
        files.write_json(folder / encoders.FILE, _public(origins))
    tokenizers.write(source / "tokenizer", folder / "tokenizer")
    for modality, differs in (("image", encoder_folders.image_differs), ("text", encoder_folders.text_differs)):
        name, values = f"{modality}_encoder", config["model"][modality]
        if values["kind"] == "none":
            yield f"{name:<20}not there: the model reads pictures alone"
            continue
        if reason := differs(values):
            yield f"{name:<20}in model.safetensors alone: {reason}"
            continue
        params = _by_path(model.params["vlm"][name])
        if modality == "image":
            _write_encoder(folder / name, encoder_folders.image_folder(values, params))
            files.write_json(folder / name / "preprocessor_config.json", encoder_folders.preprocessor(values))
            yield f"{name}/      ViTModel of transformers"
        else:
            tokenizers.write(source / "tokenizer", folder / name)
            _write_encoder(folder / name, encoder_folders.text_folder(values, params, pad_id))
            yield f"{name}/       BertModel of transformers, with the tokenizer"
    if reason := _torch_model_differs(config):
        yield f"torch_model.py      not there: {reason}"
    else:
        shutil.copyfile(TORCH_MODEL, folder / "torch_model.py")
        yield "torch_model.py      the model in PyTorch, in one file"


def _torch_model_differs(config: Mapping[str, Any]) -> str:
    """What of a model torch_model.py does not have; "" if it has all."""
    model = config["model"]
    fusion = model["fusion"]
    if model["text"]["kind"] == "none":
        return "it has no model of pictures alone"
    if fusion["kind"] not in ("cross", "joint", "none"):
        return f"it has no fusion of kind {fusion['kind']}"
    kinds = {model["image"]["kind"], model["text"]["kind"], fusion.get("block_kind", "dense")} - {"dense"}
    return f"it has no blocks of kind {kinds.pop()}" if kinds else ""


def _write_encoder(folder: Path, content: Folder) -> None:
    folder.mkdir(exist_ok=True)
    files.write_json(folder / "config.json", content.config)
    _write_arrays(folder / "model.safetensors", content.arrays)


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save

    # Old releases of transformers refuse files that do not say whose they are.
    files.write_bytes(path, save(dict(arrays), metadata={"format": "pt"}))


def _by_path(params: Any) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    map_by_path(lambda path, value: found.setdefault(path, np.asarray(value)), params)
    return found


def _result_of(source: Path, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was scored of these parameters: at the end of the run, or by an evaluation in its usual place."""
    for path in (source / "result.json", source / "evaluation" / "result.json"):
        if path.is_file():
            result = files.read_json(path)
            protocol = result.get("protocol", {})
            if protocol.get("parameters_sha256") == record["parameters_sha256"]:
                return result | {"protocol": protocol | {"initialised_from": record["initialised_from"]}}
    return None
