"""Data source `webdataset`: tar shards of KEY.jpg, KEY.txt and KEY.json, as img2dataset writes them.

A shard is read through once. Where its pictures and captions stand in it is kept beside it in NAME.tar.index, so that
later openings read only that, and an example costs one or two reads at a known place.
"""

import bisect
import glob
import hashlib
import itertools
import json
import operator
import os
import posixpath
import re
import tarfile
import uuid
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maskvlm_jax.data.caption_files import usable_captions
from maskvlm_jax.errors import UserError

_KINDS = dict.fromkeys(("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"), "image")
_KINDS |= {"txt": "txt", "json": "json"}  # ending of a member -> what it is to its sample
_SAMPLE = np.dtype(
    [
        ("image", "<i8"),  # where the picture begins in the tar
        ("image_size", "<i8"),
        ("caption", "<i8"),  # where the text or JSON with the caption begins
        ("caption_size", "<i8"),
        ("is_json", "?"),
        ("key_end", "<i8"),  # where the key ends among the shard's keys
    ]
)
_MAGIC = b"maskvlm_jax tar index 1 "
_BLOCK = tarfile.BLOCKSIZE
_OPENING_THREADS = 8  # a network file system answers several at a time
_MAX_RANGE = 1_000_000


class WebDataset:
    """Samples of tar shards; an example's id is SHARD/KEY, with the shard's name relative to the root.

    A sample is the members of one shard that share a key: the name up to the first dot of its last part. The first
    picture of a key counts. A shard is not extracted, and no name in it is ever a path on disk.

    `report` counts what was left out: `unsafe_members` (links, devices, sparse files, names that are absolute, have ..
    or are not UTF-8), `truncated_shards` (what is whole in them is kept), `repeated_keys` (the first counts),
    `samples_without_pictures`, `unusable_captions` (empty or not UTF-8) and `pictures_without_captions`.
    """

    def __init__(self, *, root: str, shards: str, caption_key: str = ""):
        """Reads the shards' indexes, and first makes those that are missing or out of date.

        Args:
          root: folder that `shards` is relative to.
          shards: glob such as "train/*.tar", or names such as "{00000..00099}.tar".
          caption_key: "txt", or a key of the JSON that holds a text or a list of them; "" takes the text file, and the
            JSON's `caption` where there is none.

        Raises:
          UserError: no shard, one that is missing or not a tar file, or no sample with a picture and a caption.
        """
        names = find_shards(root, shards, ".tar")
        self._root, self._field = Path(root).expanduser(), caption_key or "caption"
        with ThreadPoolExecutor(_OPENING_THREADS) as pool:
            self._shards = list(pool.map(partial(_open_shard, self._root, caption_key=caption_key), names))
        self._starts = [0, *itertools.accumulate(len(shard.samples) for shard in self._shards)]
        self.report: dict[str, int] = dict(sum((Counter(shard.report) for shard in self._shards), Counter()))
        if not len(self):
            raise UserError(
                f"{self._root / shards}: no sample has a picture and a caption ({self.report}); "
                "check --config.data.caption_key"
            )

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns id, encoded picture and captions; b"" stands for a picture that cannot be read any more."""
        shard, place = self._place(index)
        sample = shard.samples[place]
        image = self._read(shard, sample["image"], sample["image_size"])
        return {"id": self.id(index), "image": image, "captions": self.captions(index)}

    def id(self, index: int) -> str:
        """Returns SHARD/KEY."""
        shard, place = self._place(index)
        start = shard.samples["key_end"][place - 1] if place else 0
        key = shard.keys[start : shard.samples["key_end"][place]].decode(errors="replace")
        return f"{shard.name.removesuffix('.tar')}/{key}"

    def captions(self, index: int) -> list[str]:
        """Returns the captions, read from the shard without the picture."""
        shard, place = self._place(index)
        sample = shard.samples[place]
        text = self._read(shard, sample["caption"], sample["caption_size"])
        return usable_captions(_written_captions(text, self._field if sample["is_json"] else ""))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the ids and captions in order; the pictures' bytes are not part of it."""
        digest = hashlib.sha256()
        for shard in self._shards:
            digest.update(json.dumps([shard.name, shard.digest]).encode() + b"\n")
        return digest.hexdigest()

    def _place(self, index: int) -> tuple["_Shard", int]:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"webdataset: index {index} is not among the {len(self)} samples")
        number = bisect.bisect_right(self._starts, index) - 1
        return self._shards[number], index - self._starts[number]

    def _read(self, shard: "_Shard", start: int, size: int) -> bytes:
        """Returns b"" where the shard cannot be read, or has become shorter."""
        try:
            data = _opened(self._root / shard.name, shard.stamp).read(int(start), int(size))
        except OSError:
            return b""
        return data if len(data) == size else b""


def find_shards(root: str, pattern: str, ending: str) -> list[str]:
    """Names of the shards that a pattern means, sorted.

    Args:
      root: folder that the names are relative to.
      pattern: glob ("train/*.tar", ** for any folders), with lists and ranges in braces ("{00000..00099}.tar").
      ending: of the files to take.

    Raises:
      UserError: no such folder, no such shard, or one of those that are named one by one is missing.
    """
    folder = Path(root).expanduser()
    if not root or not folder.is_dir():
        raise UserError(f"data root {root!r} is not a folder; set --config.data.root=/path/to/the/data")
    if not pattern or pattern.startswith("/"):
        raise UserError(f"shards {pattern!r}: give a pattern relative to the data root, such as '*{ending}'")
    found: set[str] = set()
    missing = []
    for name in _expand_braces(pattern):
        names = glob.glob(name, root_dir=folder, recursive=True)
        kept = (name for name in names if name.endswith(ending) and (folder / name).is_file())
        found.update(map(posixpath.normpath, kept))
        if not names and not re.search(r"[*?[]", name):
            missing.append(name)
    if missing and found:
        raise UserError(
            f"{folder / pattern}: {len(missing)} of the shards are missing (first: {missing[0]}); "
            f"bring them, or use a pattern such as '*{ending}'"
        )
    if not found:
        raise UserError(f"{folder / pattern}: no file that ends in {ending} is there; check the root and the pattern")
    return sorted(found)


def _expand_braces(pattern: str) -> Iterator[str]:
    """Yields the pattern with each choice of its braces, {a,b} or {007..012}, as shells do."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if not braces:
        yield pattern
        return
    choices: Any = braces[1].split(",")
    if limits := re.fullmatch(r"(\d+)\.\.(\d+)", braces[1]):
        first, last = int(limits[1]), int(limits[2])
        if last - first >= _MAX_RANGE:
            raise UserError(f"shards {pattern!r}: {braces[0]} are more than {_MAX_RANGE} names; check the range")
        choices = (f"{number:0{len(limits[1])}d}" for number in range(first, last + 1))
    for choice in choices:
        yield from _expand_braces(pattern[: braces.start()] + choice + pattern[braces.end() :])


class _Shard(NamedTuple):
    """A tar's index: rows of `_SAMPLE` in the order of the tar, and their keys one behind the other.

    `stamp` tells the tar that it was made from by size and time, `digest` is a sha256 of keys and captions.
    """

    name: str
    stamp: tuple[int, int]
    samples: np.ndarray
    keys: bytes
    report: dict[str, int]
    digest: str


def _open_shard(root: Path, name: str, caption_key: str) -> _Shard:
    path, index = root / name, root / f"{name}.index"
    try:
        status = path.stat()
        stamp = (status.st_size, status.st_mtime_ns)
        shard = _load_index(index, name, stamp, caption_key)
        if shard is None:
            shard = _index_tar(path, name, stamp, caption_key)
            _save_index(index, shard, caption_key)
    except OSError as error:
        raise UserError(f"{path}: the shard cannot be read ({error.strerror}); check the file") from error
    return shard


def _load_index(path: Path, name: str, stamp: tuple[int, int], caption_key: str) -> _Shard | None:
    """Returns None where there is no index, or it is damaged, of another tar or of another caption key."""
    try:
        checksum, _, body = path.read_bytes().removeprefix(_MAGIC).partition(b"\n")
        head, _, rows = body.partition(b"\n")
        if int(checksum, 16) != zlib.crc32(body):
            return None
        told = json.loads(head)
        if (told["size"], told["mtime_ns"]) != stamp or told["caption_key"] != caption_key:
            return None
        samples = np.frombuffer(rows, _SAMPLE, told["samples"])
        keys = rows[samples.nbytes :]
        if not _is_sound(samples, len(keys), stamp[0]):
            return None
        report = {reason: int(count) for reason, count in told["report"].items()}
        return _Shard(name, stamp, samples, keys, report, str(told["digest"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_sound(samples: np.ndarray, keys_size: int, tar_size: int) -> bool:
    """Whether all places are inside the tar: an index may have come with data from anywhere."""
    places = [samples[name] for name in ("image", "image_size", "caption", "caption_size", "key_end")]
    ends = [samples["image"] + samples["image_size"], samples["caption"] + samples["caption_size"]]
    return (
        all(np.all((place >= 0) & (place <= tar_size)) for place in places)
        and all(np.all(end <= tar_size) for end in ends)
        and bool(np.all(np.diff(samples["key_end"], prepend=0, append=keys_size) >= 0))
    )


def _save_index(path: Path, shard: _Shard, caption_key: str) -> None:
    """Writes the index, at once for all readers; in a folder that cannot be written it lives in memory only."""
    told = {"size": shard.stamp[0], "mtime_ns": shard.stamp[1], "caption_key": caption_key}
    told |= {"samples": len(shard.samples), "report": shard.report, "digest": shard.digest}
    body = json.dumps(told).encode() + b"\n" + shard.samples.tobytes() + shard.keys
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        if path.exists() and not path.read_bytes().startswith(_MAGIC):
            return  # somebody else's file
        temporary.write_bytes(_MAGIC + f"{zlib.crc32(body):08x}\n".encode() + body)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()


def _index_tar(path: Path, name: str, stamp: tuple[int, int], caption_key: str) -> _Shard:
    """Reads a tar's headers and captions."""
    report: Counter[str] = Counter()
    kinds = {"": ("txt", "json"), "txt": ("txt",)}.get(caption_key, ("json",))
    rows, keys, digest = [], bytearray(), hashlib.sha256()
    for key, places in _samples(path, stamp[0], report).items():
        if "image" not in places:
            report["samples_without_pictures"] += 1
            continue
        for kind in (kind for kind in kinds if kind in places):
            start, size = places[kind]
            text = _opened(path, stamp).read(start, size)
            written = _written_captions(text, (caption_key or "caption") if kind == "json" else "")
            captions = usable_captions(written)
            report["unusable_captions"] += len(written) - len(captions)
            if captions:
                keys += key.encode()
                rows.append((*places["image"], start, size, kind == "json", len(keys)))
                digest.update(json.dumps([key, captions]).encode() + b"\n")
                break
        else:
            report["pictures_without_captions"] += 1
    return _Shard(name, stamp, np.array(rows, _SAMPLE), bytes(keys), dict(+report), digest.hexdigest())


def _samples(path: Path, tar_size: int, report: Counter[str]) -> dict[str, dict[str, tuple[int, int]]]:
    """Returns key -> "image", "txt" and "json" -> where it starts and its size; none of them is empty."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    repeated = set()
    for name, start, size in _members(path, tar_size, report):
        folder, last = posixpath.split(posixpath.normpath(name))
        stem, _, ending = last.partition(".")
        kind = _KINDS.get(ending.lower())
        if not stem or kind is None:
            continue
        key = posixpath.join(folder, stem)
        places = samples.setdefault(key, {})
        if kind in places:
            repeated.add(key)
        elif size:
            places[kind] = (start, size)
    report["repeated_keys"] = len(repeated)
    return samples


def _members(path: Path, tar_size: int, report: Counter[str]) -> Iterator[tuple[str, int, int]]:
    """Yields name, start and size of the files that are whole in a tar and safe to use."""
    if tar_size < _BLOCK:
        report["truncated_shards"] += 1
        return
    try:
        tar = tarfile.open(path, "r:", encoding="utf-8")  # noqa: SIM115
    except tarfile.ReadError as error:
        raise UserError(f"{path}: not a tar file; unpack it if it is compressed, or take it anew") from error
    with tar:
        end = 0
        # A damaged header may have a negative size, or lead backwards and so for ever in a circle.
        while (member := _next_member(tar)) is not None and member.size >= 0 and tar.offset > end:
            end = tar.offset
            tar.members.clear()  # it would keep every header
            if not _is_safe(member):
                report["unsafe_members"] += not member.isdir()
            elif member.offset_data + member.size <= tar_size:
                yield member.name, member.offset_data, member.size
        # After the last member stands a block of zeros; `tarfile` also ends at a damaged header without a word.
        tar.fileobj.seek(min(end, tar_size))
        report["truncated_shards"] += tar.fileobj.read(_BLOCK) != bytes(_BLOCK)


def _next_member(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return tar.next()
    except (tarfile.TarError, ValueError, OverflowError, RecursionError):
        return None


def _is_safe(member: tarfile.TarInfo) -> bool:
    try:
        member.name.encode()
    except UnicodeEncodeError:
        return False
    is_inside = not member.name.startswith("/") and ".." not in member.name.split("/")
    return member.isreg() and not member.issparse() and is_inside


def _written_captions(text: bytes, field: str) -> list[Any]:
    """Returns what stands where captions should: the text itself, or a field of a JSON object."""
    if not field:
        return [text]
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return [None]
    written = entry.get(field) if isinstance(entry, dict) else None
    if isinstance(written, list):
        return written
    return [] if written is None else [written]


class _Descriptor:
    """An open file for any number of threads; it closes when none has a use for it any more."""

    def __init__(self, path: Path):
        self._number = os.open(path, os.O_RDONLY)

    def __del__(self):
        with suppress(AttributeError):  # it was never opened
            os.close(self._number)

    def read(self, start: int, size: int) -> bytes:
        return os.pread(self._number, size, start)


@lru_cache(maxsize=256)
def _opened(path: Path, stamp: tuple[int, int]) -> _Descriptor:
    """Returns this process's descriptor of a shard; a shard that was written anew is opened anew."""
    del stamp
    return _Descriptor(path)
