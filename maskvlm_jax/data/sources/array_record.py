"""Data source `array_record`: shards that `maskvlm_jax.prepare` wrote, see `records`."""

import hashlib
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from array_record.python.array_record_data_source import ArrayRecordDataSource

from maskvlm_jax.data.sources import remote
from maskvlm_jax.data.sources.base import Source
from maskvlm_jax.data.sources.records import MANIFEST, RecordFile, decode, files, read_manifest
from maskvlm_jax.runtime.errors import UserError

_READER_OPTIONS = {"max_parallelism": "0"}  # records are read one at a time, in any order


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """The split `split` of the folder `data.root`, on disk or in a bucket."""
    root = remote.local_root(data["root"], "array_record", [f"*/{MANIFEST}", f"{split}/*.array_record"])
    return ArrayRecords(root=root, split=split)


def existing_splits(data: Mapping[str, Any]) -> Sequence[str]:
    """Those that are prepared."""
    manifests = remote.matches(data["root"], f"*/{MANIFEST}")
    return sorted(posixpath.dirname(name) for name in manifests) or (data["split"],)


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
