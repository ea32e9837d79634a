"""What a run starts from: its own checkpoint, another run's model, or nothing."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from maskvlm_jax.data import run_tokenizer
from maskvlm_jax.models.pretrained import encoders, positions
from maskvlm_jax.runtime import buckets, files, processes
from maskvlm_jax.runtime.errors import UserError, few
from maskvlm_jax.runtime.parameters import map_by_path
from maskvlm_jax.settings import plain_values, upgrade
from maskvlm_jax.settings import rules as configs
from maskvlm_jax.settings import workdir as workdirs
from maskvlm_jax.training import checkpoint, train_step
from maskvlm_jax.training.build import Built
from maskvlm_jax.training.checkpoint import Checkpoints
from maskvlm_jax.training.progress import Progress
from maskvlm_jax.training.train_step import TrainState

MASK_TOKEN = "mask_token"  # the only parameter that an encoder may lack, or the model leave unread


def check(config: ConfigDict, workdir: Path | None = None) -> None:
    """What a run starts from and reads must be there.

    Args:
        workdir: of a run that goes on, which needs no more what it started from; None for one that begins.

    Raises:
        UserError: no workdir to fine-tune, one of another model, encoders that cannot be read, or a tokenizer that the
            model does not fit.
    """
    if config.task == "finetune" and not config.checkpoint:
        raise UserError("fine-tuning starts from a model; set --config.checkpoint to the workdir of a run")
    if config.checkpoint and not (buckets.folder(config.checkpoint) / "config.json").is_file():
        raise UserError(f"there is no workdir {config.checkpoint!r}; set --config.checkpoint to the folder of a run")
    if config.checkpoint:
        _check_same_model(config, upgrade.read(buckets.folder(config.checkpoint) / "config.json")["model"])
        if workdir is None:
            checkpoint.open_run(buckets.folder(config.checkpoint), config.checkpoint_step)[0].close()
    if workdir is None:
        run_tokenizer.check(config)
    for modality in encoders.MODALITIES:
        if config.init[modality] and workdir is None:
            encoders.read(config, modality)


# Values of `config.model` that may differ from those of the run that a run starts from: no parameter's meaning depends
# on them.
_FREE = ("dropout", "temperature", "shared.remat", "shared.unroll", "shared.dtype")
_FREE += ("text.mask_id",)  # the tokenizer's, which is that of the run that is started from
_FREE += ("image.image_size",)  # positions are resized


def _check_same_model(config: ConfigDict, trained: dict[str, Any]) -> None:
    differing = workdirs.differing_keys({"model": trained}, {"model": plain_values.to_json(config)["model"]})
    if trained["fusion"]["kind"] == "none":  # a first stage without one: it starts from new parameters
        differing = [key for key in differing if not key.startswith("model.fusion.") and key != "model.image.hidden"]
    if trained["text"]["kind"] == "none":  # of pictures alone: all that reads text does
        differing = [key for key in differing if not key.startswith(("model.text.", "model.embed", "model.pooling."))]
    differing = [key for key in differing if not key.endswith(_FREE)]
    if differing:
        raise UserError(
            f"the model of {config.checkpoint} has other values of {', '.join(differing)}; "
            f"give the structure and flags that it was trained with: {workdirs.as_flags(differing, {'model': trained})}"
        )


def restore_or_init(
    config: ConfigDict, workdir: Path, checkpoints: Checkpoints, built: Built
) -> tuple[TrainState, Progress]:
    """The newest checkpoint of the workdir, else new parameters, with those of `config.checkpoint` or `config.init`."""
    abstract = train_step.abstract_state(built.init, built.shardings)
    restored = checkpoints.restore_newest(abstract)
    if restored is not None:
        return restored
    state = built.init()
    if config.checkpoint:
        params = _initial_params(config, state.params, abstract.params)
        state = starting_from(state, params)
    elif any(config.init[modality] for modality in encoders.MODALITIES):
        state = starting_from(state, _with_encoders(config, workdir, state.params, abstract.params))
    return state, Progress()


def starting_from(state: TrainState, params: Any) -> TrainState:
    """A new state with other parameters, with which their moving average starts too."""
    return state._replace(params=params, ema=jax.tree.map(lambda x: x.copy(), params) if state.ema else {})


def _with_encoders(config: ConfigDict, workdir: Path, params: Any, abstract: Any) -> Any:
    """`params` with the encoders of `config.init`; what was read is written into the workdir."""
    vlm, origins = dict(params["vlm"]), {}
    for modality in encoders.MODALITIES:
        if not config.init[modality]:
            continue
        encoder, name = encoders.read(config, modality), f"{modality}_encoder"
        fresh: list[str] = []
        vlm[name] = map_by_path(partial(_placed, encoder, fresh), vlm[name], abstract["vlm"][name])
        if unasked := sorted(encoder.parameters.keys() - _paths(vlm[name]) - {MASK_TOKEN}):
            raise UserError(
                f"{config.init[modality]} has {few(unasked, 3)}, which the model as configured does not have"
            )
        if missing := sorted(set(fresh) - {MASK_TOKEN}):
            raise UserError(f"{config.init[modality]} has no {few(missing, 3)}, which the model as configured needs")
        origins[modality] = encoder.report | {"fresh": fresh}
        print(_line_about(modality, origins[modality]))
    if processes.is_main():
        files.write_json(workdir / encoders.FILE, origins)
    return params | {"vlm": vlm}


def _paths(params: Any) -> set[str]:
    paths: set[str] = set()
    map_by_path(lambda path, _: paths.add(path), params)
    return paths


def _placed(encoder: encoders.Encoder, fresh: list[str], path: str, own: jax.Array, place: Any) -> jax.Array:
    """A parameter as the encoder has it; where it has none, as it is."""
    # A mask token may be one of another kind: a vector there, a colour here.
    if path not in encoder.parameters or (path == MASK_TOKEN and encoder.parameters[path].shape != own.shape):
        fresh.append(path)
        return own
    value = encoder.parameters[path]
    if value.shape != own.shape:
        raise UserError(f"{encoder.report['name']}: {path} is of {value.shape}, the model's is of {own.shape}")
    return jax.make_array_from_callback(own.shape, place.sharding, lambda index: value[index].astype(own.dtype))


def _line_about(modality: str, origins: dict[str, Any]) -> str:
    parts = [f"the {modality} encoder starts from {origins['name']} ({origins['family']})"]
    parts += [
        f"{verb} {few(origins[what], 4)}"
        for verb, what in (("folded in:", "folded"), ("new:", "fresh"))
        if origins[what]
    ]
    parts += [f"{len(origins['ignored'])} arrays of the file are not needed"] if origins["ignored"] else []
    return "; ".join(parts)


def _initial_params(config: ConfigDict, params: Any, abstract: Any) -> Any:
    """`params` with the model of the workdir `config.checkpoint`, and the heads of objectives that both train."""
    folder = buckets.folder(config.checkpoint)
    theirs = upgrade.read(folder / "config.json")
    trained, own = theirs["objectives"], plain_values.to_json(config)["objectives"]
    # An objective without parameters is not in the tree, and a tree without leaves cannot be asked for.
    heads = abstract.get("objectives", {})
    shared = {label: head for label, head in heads.items() if _same_head(own[label], trained.get(label))}
    for label in sorted(heads.keys() - shared.keys()):
        print(f"objectives.{label} has no head of its kind in {folder}: it starts from new parameters")
    parts = abstract.get("common", {})
    common = {name: part for name, part in parts.items() if _same_part(name, own, trained)}
    for name in sorted(parts.keys() - common.keys()):
        print(f"{folder} has no {name} of its kind that objectives share: it starts from new parameters")
    vlm = _that_both_have(config, abstract["vlm"], theirs["model"], folder)
    wanted = {"vlm": vlm, "objectives": shared, "common": common}
    wanted = {name: part for name, part in wanted.items() if part}
    checkpoints, step = checkpoint.open_run(folder, config.checkpoint_step)
    grid = theirs["model"]["image"]["image_size"] // config.model.image.patch
    loaded = checkpoints.load_params(step, map_by_path(partial(_of_grid, config, grid), wanted), part=True)
    checkpoints.close()
    loaded = map_by_path(partial(_resized, config), loaded, wanted)
    merged = params.get("objectives", {}) | loaded.get("objectives", {})
    vlm = params["vlm"] | loaded["vlm"]
    vlm["image_encoder"] = params["vlm"]["image_encoder"] | vlm["image_encoder"]
    for label in heads.keys() - shared.keys():
        copied = configs.objective_class(own[label]["name"]).starts_from
        merged[label] = _with_copies(label, merged[label], vlm, copied)
    merged = {"vlm": vlm, "objectives": merged, "common": params.get("common", {}) | loaded.get("common", {})}
    return {name: part for name, part in merged.items() if part}


def _with_copies(label: str, head: dict[str, Any], vlm: dict[str, Any], copied: Mapping[str, str]) -> dict[str, Any]:
    """A head whose parts start as copies of the model's, where shapes agree."""
    for path, source in copied.items():
        *above, last = path.split("/")
        theirs = _part(vlm, source.split("/"))
        head = block = dict(head)
        for name in above:
            block[name] = block = dict(block[name])
        shapes = [jax.tree.map(lambda x: x.shape, part) for part in (block[last], theirs)]
        agree = shapes[0] == shapes[1]
        print(f"objectives.{label}: {path} starts " + (f"as a copy of {source}" if agree else "from new parameters"))
        if agree:
            block[last] = jax.tree.map(lambda x: x.copy(), theirs)
    return head


def _part(params: Any, path: list[str]) -> Any:
    """The parameters below a path; None where there are none."""
    for name in path:
        params = params.get(name) if isinstance(params, Mapping) else None
    return params


def _that_both_have(config: ConfigDict, vlm: dict[str, Any], theirs: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The parameters of a model without a fusion, what reads text, and a mask token, where a stored model has none."""
    vlm = dict(vlm)
    if theirs["fusion"]["kind"] == "none" and vlm.pop("fusion", None):
        print(f"{folder} has no fusion: it starts from new parameters")
    if theirs["text"]["kind"] == "none" and len(vlm) > 1:
        vlm = {"image_encoder": vlm["image_encoder"]}
        print(f"{folder} reads no text: all but the image encoder starts from new parameters")
    hidden, own = theirs["image"]["hidden"], config.model.image.hidden
    if hidden == "none" or (hidden == "pixel") != (own == "pixel"):  # a colour is no vector
        vlm["image_encoder"] = {name: x for name, x in vlm["image_encoder"].items() if name != MASK_TOKEN}
    return vlm


def _before_patches(config: ConfigDict, path: str) -> int | None:
    """How many positions stand before those of patches in a parameter; None where it has none of patches."""
    if path == "vlm/fusion/image_slots/position":
        return 0
    image = config.model.image
    return image.class_token + image.distillation_token if path == "vlm/image_encoder/position" else None


def _of_grid(config: ConfigDict, grid: int, path: str, own: Any) -> Any:
    """The description of a parameter as it is where pictures have `grid` x `grid` patches."""
    before = _before_patches(config, path)
    if before is None:
        return own
    return jax.ShapeDtypeStruct((1, before + grid**2, own.shape[2]), own.dtype, sharding=own.sharding)


def _resized(config: ConfigDict, path: str, value: jax.Array, own: Any) -> jax.Array:
    """A parameter that was loaded, with positions for the pictures of this run."""
    if value.shape == own.shape:
        return value
    before, side = _before_patches(config, path), config.model.image.image_size // config.model.image.patch
    print(f"{path}: positions of {value.shape[1] - before} patches are resized to {side} x {side}")
    resized = positions.resize(np.asarray(processes.fetch(value))[0], before, side)[None]
    return jax.make_array_from_callback(own.shape, own.sharding, lambda index: resized[index])


def _same_head(own: dict[str, Any], trained: dict[str, Any] | None) -> bool:
    """Whether two objectives have one kind of head: the same label may stand for another class or other sizes."""
    if trained is None or not trained["weight"] or own["name"] != trained["name"]:
        return False
    free = ("weight", *configs.objective_class(own["name"]).training_arguments)
    kinds = ({key: value for key, value in x.items() if key not in free} for x in (own, trained))
    return plain_values.flatten(next(kinds)) == plain_values.flatten(next(kinds))


def _same_part(name: str, own: Mapping[str, Any], trained: Mapping[str, Any]) -> bool:
    """Whether what objectives share under a name is built alike in two configs, and trained in both."""
    kinds = []
    for objectives in (own, trained):
        active = (one for one in objectives.values() if one["weight"])
        # Those alone have it, so that no other objective's class, which may not be there any more, is asked for.
        having = (one for one in active if name in one)
        kinds += [one[name] for one in having if name in configs.objective_class(one["name"]).shares][:1]
    return len(kinds) == 2 and plain_values.flatten(kinds[0]) == plain_values.flatten(kinds[1])
