"""Prepared shards: examples as records of ArrayRecord files, beside a manifest of what they hold.

    SPLIT/manifest.json                        what was asked, counted and left out; size and sha256 of each file
    SPLIT/shard-00000-of-00012.array_record    {"id", "image" (encoded picture), "captions", ...} as MessagePack
    SPLIT/captions.array_record                {"id", "captions"} in the same order, read without the pictures

`maskvlm_jax.prepare` writes them, the source `array_record` reads them. What else a source knows of its examples, such
as labels and boxes, is in the records too; arrays and tuples come back as lists. One record a group, so that any record
is read by itself; no compression, as pictures are compressed already.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from maskvlm_jax.runtime.errors import UserError

FORMAT, VERSION = "maskvlm_jax records", 1
MANIFEST, CAPTIONS = "manifest.json", "captions.array_record"

_KEYS = {"id": str, "image": bytes, "captions": list}
_TEXT = "surrogatepass"  # a file name need not be UTF-8
_WRITER_OPTIONS = "group_size:1,uncompressed"


def encode(example: Mapping[str, Any]) -> bytes:
    """The record of an example: its id, encoded picture (may be left out) and captions, and what else is known of it.

    Raises:
        UserError: something that is no number, text, list, dict or array.
    """
    try:
        return msgpack.packb(dict(example), unicode_errors=_TEXT, default=_plain)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{example['id']} holds what a record cannot ({error}); leave it out of the source") from error


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as MessagePack has them."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__}")


def decode(record: bytes) -> dict[str, Any]:
    """Inverse of `encode`.

    Raises:
        ValueError: the bytes are no such record.
    """
    try:
        example = msgpack.unpackb(record, unicode_errors=_TEXT, strict_map_key=False)
        sound = all(isinstance(example[key], kind) for key, kind in _KEYS.items() if key != "image" or key in example)
    except Exception as error:  # of many kinds, depending on where the bytes are wrong
        raise ValueError(f"no record of an example: {error}") from error
    if not sound:
        raise ValueError("no record of an example: a field has the wrong type")
    return example


class RecordFile(NamedTuple):
    """What a manifest says of a file: its name, and its examples, size and sha256."""

    name: str
    examples: int
    bytes: int
    sha256: str


def write_file(path: Path, records: Iterable[bytes], *, temporary: Path) -> RecordFile:
    """Writes an ArrayRecord file in one step: a killed process leaves the whole file or none.

    Args:
        temporary: where it grows, on the same file system.

    Raises:
        OSError: it cannot be written; the library tells so only at the end.
    """
    writer, count = ArrayRecordWriter(str(temporary), _WRITER_OPTIONS), 0
    try:
        for record in records:
            writer.write(record)
            count += 1
        writer.close()
    except RuntimeError as error:
        raise OSError(f"{path} cannot be written: {str(error).splitlines()[0]}") from error
    written = RecordFile(path.name, count, temporary.stat().st_size, _sha256(temporary))
    os.replace(temporary, path)
    return written


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared split.

    Raises:
        UserError: there is none, it is damaged, or of another version of the format.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(_why_no_manifest(folder)) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; prepare the split again into another folder") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} is no manifest of prepared shards; run python -m maskvlm_jax.prepare")
    if manifest["version"] != VERSION:
        raise UserError(
            f"{path} is of version {manifest['version']} of the format, this program reads {VERSION}; "
            "prepare the split again"
        )
    return manifest


def _why_no_manifest(folder: Path) -> str:
    if (folder / "work").is_dir():
        return f"{folder} is not finished; the command that prepared it goes on where it was"
    there = sorted(path.parent.name for path in folder.parent.glob(f"*/{MANIFEST}"))
    if there:
        return f"there is no split {folder.name!r} in {folder.parent}; choose among {', '.join(there)}"
    return (
        f"{folder / MANIFEST} does not exist; was the set prepared (python -m maskvlm_jax.prepare)? "
        "Set --config.data.root to what was its --config.out"
    )


def files(manifest: Mapping[str, Any]) -> list[RecordFile]:
    """All files that a manifest names: its shards, then that of the captions."""
    return [RecordFile(**entry) for entry in (*manifest["shards"], manifest["captions_file"])]


def damaged(folder: Path) -> list[Path]:
    """Reads all files of a prepared split; returns those whose sha256 is not that of the manifest."""

    def sound(file: RecordFile) -> bool:
        try:
            return _sha256(folder / file.name) == file.sha256
        except OSError:
            return False

    named = files(read_manifest(folder))
    with ThreadPoolExecutor() as pool:  # hashing lets go of Python's lock
        found = list(tqdm(pool.map(sound, named), f"verify {folder.name}", len(named), unit=" files"))
    return [folder / file.name for file, good in zip(named, found, strict=True) if not good]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
