"""Prepared shards: examples as records of ArrayRecord files, beside a manifest of what they hold.

    SPLIT/manifest.json                        what was asked, counted and left out; size and sha256 of each file
    SPLIT/shard-00000-of-00012.array_record    {"id", "image" (encoded picture), "captions"} as MessagePack
    SPLIT/captions.array_record                {"id", "captions"} in the same order, read without the pictures

`maskvlm_jax.prepare` writes them. One record a group, so that any record is read by itself; no compression, as pictures
are compressed already.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from maskvlm_jax.errors import UserError

FORMAT, VERSION = "maskvlm_jax records", 1
MANIFEST, CAPTIONS = "manifest.json", "captions.array_record"

_KEYS = {"id": str, "image": bytes, "captions": list}
_TEXT = "surrogatepass"  # a file name need not be UTF-8
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = {"max_parallelism": "0"}  # records are read one at a time, in any order


def encode(example: Mapping[str, Any]) -> bytes:
    """The record of an example: its id, encoded picture (may be left out) and captions; the rest is dropped."""
    return msgpack.packb({key: example[key] for key in _KEYS if key in example}, unicode_errors=_TEXT)


def decode(record: bytes) -> dict[str, Any]:
    """Inverse of `encode`.

    Raises:
        ValueError: the bytes are no such record.
    """
    try:
        example = msgpack.unpackb(record, unicode_errors=_TEXT)
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
    told = RecordFile(path.name, count, temporary.stat().st_size, _sha256(temporary))
    os.replace(temporary, path)
    return told


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


class _Shard(NamedTuple):
    """What array_record asks of a file it need not open to count its records."""

    filename: str
    take: int
    examples_in_shard: int
    skip: int = 0


class ArrayRecords:
    """The source `array_record`: a split that `maskvlm_jax.prepare` wrote.

    Safe to read from several threads; pickled into a worker process it opens its files anew.

    Args:
        root: the folder with the splits, `config.out` of prepare.
        split: its name.

    Raises:
        UserError: no or another manifest, or a file of it that is missing or of another size. The files' content is
            not read here; `prepare --config.verify=True` does.
    """

    def __init__(self, *, root: str, split: str):
        self._folder = Path(root).expanduser() / split
        if not root or not self._folder.parent.is_dir():
            raise UserError(f"data root {root!r} is not a folder; set --config.data.root to what prepare wrote")
        manifest = read_manifest(self._folder)
        for file in files(manifest):
            _check_size(self._folder / file.name, file.bytes)
        *self._shards, captions = files(manifest)
        self._text_files = [captions]
        self._records, self._texts = self._open(self._shards), self._open(self._text_files)
        dropped = manifest["dropped"]
        missing = max(0, manifest["expected"] - manifest["written"] - sum(dropped.values()))
        self.report: dict[str, int] = {"missing_pictures": missing} if missing else {}
        self.report |= {f"pictures_dropped_as_{reason.replace(' ', '_')}": count for reason, count in dropped.items()}

    def _open(self, files: list[RecordFile]) -> ArrayRecordDataSource:
        shards = [_Shard(str(self._folder / file.name), file.examples, file.examples) for file in files]
        return ArrayRecordDataSource(shards, reader_options=_READER_OPTIONS)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns id, encoded picture and captions.

        Raises:
            UserError: the record is damaged.
        """
        return self._read(self._records, self._shards, index)

    def _read(self, records: ArrayRecordDataSource, files: list[RecordFile], index: int) -> dict[str, Any]:
        index = range(len(records))[index]
        try:
            return decode(records[index])
        except (ValueError, RuntimeError, IndexError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"{self._place(files, index)} is damaged ({reason}); copy the file again or prepare the split again; "
                "prepare --config.verify=True finds all damaged files"
            ) from error

    def _place(self, files: list[RecordFile], index: int) -> str:
        for file in files:
            if index < file.examples:
                return f"record {index} of {self._folder / file.name}"
            index -= file.examples
        raise IndexError(index)

    def _text(self, index: int) -> dict[str, Any]:
        return self._read(self._texts, self._text_files, index)

    def id(self, index: int) -> str:
        """Returns the example's id without reading the picture."""
        return self._text(index)["id"]

    def captions(self, index: int) -> list[str]:
        """Returns the picture's captions without reading the picture."""
        return self._text(index)["captions"]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the shards' own, in order: of every byte, wherever the folder is."""
        return hashlib.sha256("".join(f"{shard.sha256}\n" for shard in self._shards).encode()).hexdigest()


def _check_size(path: Path, size: int) -> None:
    try:
        there = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} is missing or cannot be read ({error.strerror}); copy it again") from error
    if there != size:
        raise UserError(f"{path} has {there} bytes, its manifest says {size}; copy it again")
