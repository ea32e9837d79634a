"""What an index is of: its pictures, its model, and where its vectors are; kept in its index.json."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Protocol

import numpy as np

from maskvlm_jax.runtime import files
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import workdir

_FILE, _FORMAT = "index.json", 1


class Embedder(Protocol):
    """What indexing asks of a model, see `serving.model.Model`."""

    embed_dim: int
    image_size: int
    parameters_sha256: str

    def encode_images(self, images: np.ndarray) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Facts:
    """The facts of an index.

    Attributes:
        folder: of the pictures; bytes of its path that are no UTF-8 are surrogates, as `os.fsdecode` makes them.
        model, checkpoint, weights: what `maskvlm_jax.load` reads the model by.
        run, parameters_sha256: its name, and which parameters it has.
        image_size, embed_dim: pixels that it reads, and numbers of a vector.
        store, url, collection: where vectors are, see `stores`; cache: what finds them faster, "" = nothing.
    """

    folder: str
    model: str
    checkpoint: str
    weights: str
    run: str
    parameters_sha256: str
    image_size: int
    embed_dim: int
    store: str = "exact"
    url: str = ""
    collection: str = ""
    cache: str = ""


def is_index(index: Path) -> bool:
    """Whether a folder holds an index."""
    return (index / _FILE).is_file()


def read(index: Path) -> Facts:
    """The facts of an index.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    if not is_index(index):
        raise UserError(
            f"there is no index in {index}; make one: python -m maskvlm_jax.search index FOLDER --index=DIR"
        )
    told = files.read_json(index / _FILE)
    number = told.pop("format", None) if isinstance(told, dict) else None
    if number != _FORMAT:
        raise UserError(f"{index} is an index of format {number}, and this release reads {_FORMAT}; make it anew")
    try:
        return Facts(**told)
    except TypeError as error:
        raise UserError(f"{index / _FILE} is damaged ({error}); make the index anew") from error


def write(index: Path, facts: Facts) -> None:
    """Writes the facts in one step."""
    # ASCII alone: surrogates of a path cannot be written otherwise.
    files.write_text(index / _FILE, json.dumps({"format": _FORMAT} | dataclasses.asdict(facts), indent=2) + "\n")


def locked(index: Path) -> contextlib.AbstractContextManager[bool]:
    """Keeps other processes from changing an index; see `workdir.locked`."""
    return workdir.locked(index, who="index command", kind="index", flag="--index")


def check_model(index: Path, facts: Facts, model: Embedder) -> None:
    """Raises UserError: the vectors of the index are another model's."""
    if model.parameters_sha256 != facts.parameters_sha256:
        raise UserError(
            f"{index} is of another model: its vectors are those of {facts.run} with parameters "
            f"{facts.parameters_sha256}, and the model that was given has {model.parameters_sha256}; "
            "give that model, or make an index of this one in another folder"
        )
