"""Opens the sources that a config names: one set, or a mixture of several."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from maskvlm_jax.data.sources import remote
from maskvlm_jax.data.sources.base import Source
from maskvlm_jax.data.sources.cleaned import Cleaned
from maskvlm_jax.data.sources.mixture import Mixture
from maskvlm_jax.data.sources.training_set import Limited, TrainingSet
from maskvlm_jax.runtime import plugins
from maskvlm_jax.runtime.errors import UserError


def open_source(data: Mapping[str, Any], split: str, image_size: int) -> Source:
    """A split of the set that `config.data` names; of a mixture, of the set `data.evaluation_set`.

    Raises:
        UserError: an unknown kind of source, or whatever the source finds wrong.
    """
    if data["mixture"]:
        parts = dict(_parts(data))
        name = data["evaluation_set"]
        if name not in parts:
            raise UserError(f"data.evaluation_set is {name!r}; choose among {', '.join(parts)}")
        with _of_a_mixture(name):
            return open_source(parts[name], split, image_size)
    return Cleaned(_open_split(data["source"])(data, split, image_size=image_size), data["clean"])


@contextmanager
def _of_a_mixture(name: str) -> Iterator[None]:
    """Errors name the flags of a set of a mixture, where it would name those of a set alone."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}".replace("--config.data.", f"--config.data.mixture.{name}.")) from error


def open_training_source(data: Mapping[str, Any], image_size: int) -> TrainingSet:
    """What `config.data` trains on: the first examples of its split `data.split`, or a mixture of its sets, each with a
    split and a number of examples of its own."""
    if not data["mixture"]:
        return Limited(open_source(data, data["split"], image_size), data["limit"])
    parts = []
    for name, part in _parts(data):
        with _of_a_mixture(name):
            source = open_source(part, part["split"], image_size)
        parts.append((name, source, part["weight"], part["limit"]))
    return Mixture(parts)


MOST_COMPARED = 300_000


def count_trained_on(
    trained: TrainingSet, scored: Mapping[str, tuple[Source, int]], *, part: str = ""
) -> dict[str, int]:
    """How many of the scored examples of each split training sees too, by their ids.

    Splits are left out where there are too many ids to look at, or each costs the reading of a record.

    Args:
        scored: split -> another split of the same set, and how many of its first examples are scored; 0 = all.
        part: of a mixture, the set that is scored: the others name the same picture otherwise.
    """
    trained, seen = trained.part(part)
    lengths = {split: min(most or len(source), len(source)) for split, (source, most) in scored.items()}
    same = {split: min(seen, lengths[split]) for split in scored if scored[split][0].fingerprint == trained.fingerprint}
    if seen + sum(lengths.values()) > MOST_COMPARED or getattr(trained, "id_reads_record", False):
        return same
    wanted = {split: {scored[split][0].id(i) for i in range(lengths[split])} for split in scored if split not in same}
    ids = {trained.id(i) for i in range(seen)} if wanted else set()
    return same | {split: len(ids & names) for split, names in wanted.items()}


def _parts(data: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(name, `config.data` with that set's own values) of each set of a mixture, by name."""
    return [(name, {**data, **part, "mixture": {}}) for name, part in sorted(data["mixture"].items())]


def _open_split(kind: str) -> Callable[..., Source]:
    return plugins.load("maskvlm_jax.data.sources", kind, "open_split", "data source")


def existing_splits(data: Mapping[str, Any]) -> Sequence[str]:
    """The splits that the set `config.data` has on disk, as its kind of source knows them."""
    kind = sys.modules[_open_split(data["source"]).__module__]
    return getattr(kind, "existing_splits", remote.splits_there)(data)
