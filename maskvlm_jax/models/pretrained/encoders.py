"""Encoders that were trained elsewhere: what a config must be to hold them, and their parameters as ours."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from maskvlm_jax.models.pretrained import files, positions
from maskvlm_jax.models.pretrained.families.base import Arrays, Family
from maskvlm_jax.models.pretrained.files import Stored
from maskvlm_jax.runtime import buckets, plugins
from maskvlm_jax.runtime.errors import UserError, first_line
from maskvlm_jax.runtime.files import read_json

MODALITIES = ("image", "text")
FILE = "initial_weights.json"  # of a workdir: which encoders its run started from
# Values of `config.model.image` and `config.model.text` that are an encoder's.
_OF_ENCODERS = ("vocab_size", "patch", "depth", "width", "heads", "mlp_ratio", "activation", "eps", "norm")
_OF_ENCODERS += ("class_token", "distillation_token", "registers", "norm_before")
# What our models cannot hold exactly, and what can be had instead.
_REFUSED = {
    "beit": "BEiT adds relative positions to attention; take ViT, DeiT, DINOv2 or MAE",
    "data2vec-vision": "it adds relative positions to attention; take ViT, DeiT, DINOv2 or MAE",
    "dinov3_vit": "DINOv3 rotates queries and keys by position; take DINOv2",
    "mpnet": "MPNet adds relative positions to attention; take MiniLM, BERT or RoBERTa",
    "modernbert": "ModernBERT rotates queries and keys by position; take BERT or RoBERTa",
    "eurobert": "EuroBERT rotates queries and keys by position; take BERT or XLM-R",
    "clip_text_model": "CLIP's text tower attends backwards only; take BERT or RoBERTa",
    "siglip_text_model": "SigLIP's text tower attends to padding; take BERT or RoBERTa",
    "albert": "ALBERT shares one block among its layers; take BERT or RoBERTa",
    "deberta": "DeBERTa adds relative positions to attention; take BERT or RoBERTa",
    "deberta-v2": "DeBERTa adds relative positions to attention; take BERT or RoBERTa",
    "swin": "Swin attends in windows; take ViT, DeiT, DINOv2 or MAE",
}


class Encoder(NamedTuple):
    """An encoder's parameters by their paths in ours, and what is to be told of where they are from."""

    parameters: dict[str, np.ndarray]
    report: dict[str, Any]


def complete(config: ConfigDict, given: Iterable[str], workdir: Path | None = None) -> None:
    """Fills in what the encoders of `config.init` say of the model: their own values, and the width of what reads them.

    A run that has started from them needs them no more: its workdir says what they were, also to a run that starts from
    it by `config.checkpoint`. A width of 0 is that of an encoder.

    Args:
        given: keys that flags gave.
        workdir: of a run that goes on; None for one that begins.

    Raises:
        UserError: there is no such encoder, it is none that the model can hold, or a flag says otherwise.
    """
    if "init" not in config:
        return
    given, origins = set(given), _origins(config, workdir)
    for modality in MODALITIES:
        if not config.init[modality] and modality not in origins:
            continue
        if config.init[modality] and config.checkpoint:
            raise UserError(f"both init.{modality} and checkpoint are given, of which the model would start; give one")
        block = config.model[modality]
        if (not block.depth and f"model.{modality}.depth" not in given) or block.get("embedding", "patch") != "patch":
            raise UserError(f"init.{modality} goes with recipes whose encoders have blocks; this one's only embed")
        values = origins[modality]["values"] if modality in origins else values_of(family_of(config, modality))
        for key, value in values.items():
            _fill(block, key, value, modality, given, config.init[modality] or config.checkpoint or str(workdir))
        for name, other in _readers(config).items():
            for key in ("width", "heads"):
                if key in other and f"{name}.{key}" not in given:
                    other[key] = values[key]
    if lacking := [name for name in MODALITIES if not config.model[name].width]:
        raise UserError(
            f"the size of model.{lacking[0]} is that of an encoder; set --config.init.image and --config.init.text"
        )


def _origins(config: ConfigDict, workdir: Path | None) -> dict[str, Any]:
    """What the workdirs of a run, or of that which it starts from, say of the encoders that they began with.

    One that began with another run's says what its model is.
    """
    start = buckets.folder(config.checkpoint) if config.checkpoint else None
    for folder in (workdir, start):
        if folder is not None and (folder / FILE).is_file():
            return read_json(folder / FILE)
    if start is None or all(config.model[name].width for name in MODALITIES) or not (start / "config.json").is_file():
        return {}
    model = read_json(start / "config.json")["model"]
    there = [name for name in MODALITIES if model[name].get("kind") != "none"]  # a model of pictures reads no text
    said = {name: {key: model[name][key] for key in _OF_ENCODERS if key in model[name]} for name in there}
    return {name: {"values": values} for name, values in said.items()}


def _fill(block: ConfigDict, key: str, value: Any, modality: str, given: set[str], source: str) -> None:
    name, own = f"model.{modality}.{key}", block[key]
    if isinstance(own, int) and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, type(own)) and not (isinstance(own, float) and isinstance(value, int)):
        raise UserError(f"{source} says {value!r} for {name}, which is a value like {own!r}; it cannot be held")
    if (name in given or f"model.{modality}" in given) and own != value:
        raise UserError(f"{name} is {own} by a flag, {source} has {value}; leave the flag out")
    block[key] = type(own)(value)


def _readers(config: ConfigDict) -> dict[str, ConfigDict]:
    """What reads the encoders' output, and is as wide as they are; an encoder without a width of its own too."""
    found = {f"model.{name}": config.model[name] for name in MODALITIES if not config.model[name].width}
    found |= {"model.fusion": config.model.fusion}
    found |= {f"objectives.{label}.decoder": one.get("decoder") for label, one in config.objectives.items()}
    return {name: block for name, block in found.items() if block and "width" in block}


def tokenizer_of(config: ConfigDict) -> str:
    """The folder of the tokenizer that comes with the text encoder of `config.init`.

    Raises:
        UserError: it comes with none.
    """
    stored = files.find(config.init.text, "init.text")
    if any((stored.folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json")):
        return str(stored.folder)
    raise UserError(
        f"{stored.name} has no tokenizer; set --config.data.tokenizer to a folder with the one of its words"
    )


def family_of(config: ConfigDict, modality: str) -> Family:
    """The family of the encoder that `config.init` names for a modality, opened on it.

    Raises:
        UserError: there is no such encoder, or it is of no family that there is.
    """
    stored = files.find(config.init[modality], f"init.{modality}")
    named = config.init[f"{modality}_family"]
    kind = stored.config.get("model_type") or stored.config.get("architecture")
    if named == "auto" and isinstance(kind, str) and kind in _REFUSED:
        raise UserError(f"{stored.name} cannot be held exactly: {_REFUSED[kind]}")
    families = plugins.names("maskvlm_jax.models.pretrained.families", "Family")
    with _naming(stored):
        if named != "auto":
            found = _load(named)
        else:
            found = next((family for family in map(_load, families) if family.reads(stored)), None)
        if found is None:
            raise UserError(
                f"{stored.name} is of no family that can be read ({kind or 'it does not say of which'}); there are "
                f"{', '.join(families)}, or set --config.init.{modality}_family to a .py file"
            )
        if found.modality != modality:
            raise UserError(f"{stored.name} reads {found.modality}s; it is no encoder for init.{modality}")
        return found(stored)


@contextlib.contextmanager
def _naming(stored: Stored) -> Iterator[None]:
    """Names the encoder in whatever a family trips over that is not as it should be."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{stored.name} does not say {error}; is it whole, and of the kind that it says?") from error
    except (TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"{stored.name} is not as its family is ({first_line(error)}); copy it again") from error


def values_of(family: Family) -> dict[str, Any]:
    """Values of `config.model.image` or `config.model.text`.

    Raises:
        UserError: it does not say one, or it is none that the model can have.
    """
    with _naming(family.stored):
        return family.values()


def _load(name: str) -> type[Family]:
    return plugins.load("maskvlm_jax.models.pretrained.families", name, "Family", "family of encoders")


def read(config: ConfigDict, modality: str) -> Encoder:
    """The encoder that `config.init` names for a modality, with positions for the config's pictures and captions.

    Raises:
        UserError: it cannot be read, lacks an array, has others than its family, or too few positions.
    """
    family = family_of(config, modality)
    stored = family.stored
    with _naming(stored):
        arrays = Arrays(stored.arrays, family.names(), stored.name)
        found = family.parameters(arrays)
        arrays.check_nothing_is_left()
        if modality == "image":
            _resize_positions(found, config.model.image, family)
    if modality == "text":
        if len(found["position"]) < config.model.text.max_length:
            raise UserError(
                f"{stored.name} has positions for {len(found['position'])} tokens, model.text.max_length is "
                f"{config.model.text.max_length}; set --config.model.text.max_length to at most that"
            )
        found["position"] = found["position"][: config.model.text.max_length]
    found["position"] = found["position"][None]
    report = {"name": stored.name, "family": stored.config.get("model_type") or type(family).__module__.split(".")[-1]}
    report |= {"sha256": stored.sha256(), "folded": family.folds, "ignored": arrays.ignored()}
    return Encoder(found, report | {"values": values_of(family)})


def _resize_positions(found: dict[str, np.ndarray], image: ConfigDict, family: Family) -> None:
    first, side = int(image.class_token) + int(image.distillation_token), image.image_size // image.patch
    before = len(found["position"])
    found["position"] = positions.resize(found["position"], first, side, antialias=family.antialias)
    if len(found["position"]) != before:
        family.folds.append(f"positions of {before - first} patches resized to {side} x {side}")
