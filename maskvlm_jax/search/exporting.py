"""Names and vectors of an index as a file for other programs: .npz, .parquet or .csv."""

import csv
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from maskvlm_jax.runtime.errors import UserError, writing
from maskvlm_jax.search import facts as facts_of
from maskvlm_jax.search import stores
from maskvlm_jax.search.catalogue import Catalogue
from maskvlm_jax.search.scanning import printable

_BLOCK = 8_192
_Block = tuple[list[str], list[int], list[str], np.ndarray]  # names, rows, sha256 and vectors of files


def export(index: Path, out: Path) -> int:
    """Writes the name, row, sha256 and vector (float32) of every picture, in the order of names; returns how many.

    Raises:
        UserError: the ending of `out` is another, it exists, or it cannot be written.
    """
    write = {".npz": _npz, ".parquet": _parquet, ".csv": _csv}.get(out.suffix)
    if write is None:
        raise UserError(f"{out} is to end in .npz, .parquet or .csv")
    if out.exists():
        raise UserError(f"{out} is there already; remove it or give another name")
    facts = facts_of.read(index)
    catalogue, store = Catalogue(index), stores.open_store(index, facts)
    temporary = out.with_name(f"{out.name}.partial")
    with writing(out):
        write(temporary, _blocks(catalogue, store), facts.embed_dim)
        os.replace(temporary, out)
    return catalogue.pictures()


def _blocks(catalogue: Catalogue, store: stores.Store) -> Iterator[_Block]:
    listing = catalogue.listing()
    while block := list(itertools.islice(listing, _BLOCK)):
        names, rows, contents = zip(*block, strict=True)
        shown = [printable(name) for name in names]
        yield shown, list(rows), [sha256.hex() for sha256 in contents], store.read(np.array(rows))


def _npz(path: Path, blocks: Iterator[_Block], width: int) -> None:
    names, rows, contents, vectors = [], [], [], [np.zeros((0, width), np.float32)]
    for block in blocks:
        names += block[0]
        rows += block[1]
        contents += block[2]
        vectors.append(block[3])
    arrays = {"name": np.array(names, str), "row": np.array(rows, np.int64), "sha256": np.array(contents, str)}
    with path.open("wb") as file:  # given a name, NumPy would add another ending
        np.savez(file, **arrays, vector=np.concatenate(vectors))


def _parquet(path: Path, blocks: Iterator[_Block], width: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    vector = pa.list_(pa.float32(), width)
    schema = pa.schema([("name", pa.string()), ("row", pa.int64()), ("sha256", pa.string()), ("vector", vector)])
    with pq.ParquetWriter(path, schema) as writer:
        for names, rows, contents, vectors in blocks:
            flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), width)
            writer.write_table(pa.table([pa.array(names), pa.array(rows), pa.array(contents), flat], schema=schema))


def _csv(path: Path, blocks: Iterator[_Block], width: int) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "row", "sha256", *(f"v{place}" for place in range(width))])
        for names, rows, contents, vectors in blocks:
            lines = zip(names, rows, contents, vectors, strict=True)
            writer.writerows([name, row, sha256, *vector] for name, row, sha256, vector in lines)
