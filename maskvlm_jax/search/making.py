"""An index made, or found again and brought up to date, under its lock."""

import dataclasses
import os
import uuid
from pathlib import Path
from typing import NamedTuple

from maskvlm_jax.runtime.errors import UserError, few
from maskvlm_jax.search import facts as facts_of
from maskvlm_jax.search import indexing, scanning, splits, stores
from maskvlm_jax.search.catalogue import Catalogue
from maskvlm_jax.search.facts import Facts
from maskvlm_jax.search.indexing import Report
from maskvlm_jax.search.searching import load_model
from maskvlm_jax.serving import model as serving
from maskvlm_jax.serving.model import Model

_PICTURES = "pictures"  # of a split, in the folder of the index


class Place(NamedTuple):
    """Where vectors are to be, see `facts.Facts`."""

    store: str = "exact"
    url: str = ""
    cache: str = ""


def index(
    index: Path, folder: str, model: Model, name: str, weights: str, place: Place, *, split: str = "", progress=True
) -> str:
    """Makes an index, or goes on with one of the same folder and model; returns what it did, in lines.

    Args:
        folder: of the pictures, "" where `split` names one of the run's data.
        model, name, weights: the model, its folder, and which of its parameters it has.

    Raises:
        UserError: the index is of something else, or in use, or cannot be made.
    """
    try:
        model.temperature  # noqa: B018
    except ValueError as error:
        raise UserError(f"{name} cannot be searched with: {error}") from error
    where = os.path.realpath(index / _PICTURES) if split else checked(index, folder)
    with facts_of.locked(index):
        facts = _facts(where, model, name, weights, place)
        if facts_of.is_index(index):
            facts = _found_again(index, facts, model)
        if split:
            splits.write_pictures(model.config.data.to_dict(), split, model.image_size, Path(where))
        facts_of.write(index, facts)
        return told(index, facts, indexing.update(index, facts, lambda: model, progress=progress))


def update(index: Path, *, folder: str = "", model: str = "", cache: str | None = None, progress=True) -> str:
    """Brings an index up to date; returns what it did, in lines.

    Args:
        folder, model: where they are by now, "" = where they were; cache: another one, "none" for none.
    """
    facts = facts_of.read(index)
    changed = {} if cache is None else {"cache": "" if cache == "none" else cache}
    if folder:
        changed["folder"] = checked(index, folder)
    if model:
        changed["model"] = _absolute(model)
    facts = dataclasses.replace(facts, **changed)
    stores.check(facts.store, facts.url, facts.cache)
    with facts_of.locked(index):
        report = indexing.update(index, facts, lambda: load_model(facts, "", serving.load), progress=progress)
        if changed:
            facts_of.write(index, facts)
        return told(index, facts, report)


def checked(index: Path, folder: str) -> str:
    """The whole path of a folder of pictures.

    Raises:
        UserError: it is missing, or the index would be written into it.
    """
    folder = os.path.realpath(Path(folder).expanduser())
    if not os.path.isdir(folder):
        raise UserError(f"there is no folder {scanning.printable(os.fsencode(folder))}; is the disk there?")
    if Path(os.path.realpath(index)).is_relative_to(folder):
        raise UserError(
            f"--index={index} lies in the folder of the pictures, which is only read; give one outside of it"
        )
    return folder


def _facts(folder: str, model: Model, name: str, weights: str, place: Place) -> Facts:
    return Facts(
        folder=folder,
        model=_absolute(name),
        checkpoint=model.checkpoint,
        weights=weights,
        run=model.config.name,
        parameters_sha256=model.parameters_sha256,
        image_size=model.image_size,
        embed_dim=model.embed_dim,
        collection=f"maskvlm_{uuid.uuid4().hex[:16]}" if place.store == "milvus" else "",
        **place._replace(url=_absolute(place.url))._asdict(),
    )


def _absolute(path: str) -> str:
    """A path that is the same from every folder; an address, or nothing, as it is."""
    return path if not path or "://" in path else os.path.realpath(Path(path).expanduser())


def _found_again(index: Path, wanted: Facts, model: Model) -> Facts:
    """The facts of an index that is there, with the model where it is by now.

    Raises:
        UserError: it is of another model, folder or store.
    """
    there = facts_of.read(index)
    facts_of.check_model(index, there, model)
    if there.folder != wanted.folder:
        raise UserError(
            f"{index} is of the folder {scanning.printable(os.fsencode(there.folder))}; give another --index, or, if "
            f"the pictures were moved: update {index} --folder=FOLDER"
        )
    if (there.store, there.url) != (wanted.store, wanted.url):
        raise UserError(f"{index} has its vectors in --store={there.store} {there.url}; give that, or another --index")
    return dataclasses.replace(wanted, collection=there.collection, cache=wanted.cache or there.cache)


def told(index: Path, facts: Facts, report: Report) -> str:
    """What an update did, in lines."""
    rate = f" ({report.embedded / report.seconds:,.0f} pictures/s)" if report.embedded else ""
    lines = [f"{report.pictures:,} pictures of {scanning.printable(os.fsencode(facts.folder))} are in {index}"]
    lines.append(
        f"{report.embedded:,} embedded{rate}, {report.known:,} known under another name or date, {report.gone:,} gone"
    )
    if report.broken:
        names = few((scanning.printable(name) for name, _ in Catalogue(index).broken()), 3)
        lines.append(f"{report.broken:,} cannot be read: {names}; {index / indexing.BROKEN} says why")
    if report.links:
        lines.append(f"{report.links:,} links were passed over")
    if report.unseen:
        lines.append(f"{report.unseen:,} folders could not be looked into; what was known of them is kept")
    return "\n".join(lines)
