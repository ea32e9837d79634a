"""Where the pictures and captions of a tar shard stand: read once, and kept beside it in NAME.tar.index.

A shard is not extracted, and no name in it is ever a path on disk.
"""

import hashlib
import json
import os
import posixpath
import tarfile
import uuid
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from maskvlm_jax.data.sources.written_text import usable_captions
from maskvlm_jax.runtime.errors import UserError

_KINDS = dict.fromkeys(
    ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2"), "image"
)
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
_MAGIC = b"maskvlm_jax tar index 3 "
_BLOCK = tarfile.BLOCKSIZE


class Shard(NamedTuple):
    """A tar's index: rows of `_SAMPLE` in the order of the tar, and their keys one behind the other.

    `stamp` tells the tar that it was made from by size and time, `digest` is a sha256 of keys and captions.
    """

    name: str
    stamp: tuple[int, int]
    samples: np.ndarray
    keys: bytes
    report: dict[str, int]
    digest: str


def open_shard(root: Path, name: str, caption_key: str) -> Shard:
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


def _load_index(path: Path, name: str, stamp: tuple[int, int], caption_key: str) -> Shard | None:
    """Returns None where there is no index, or it is damaged, of another tar or of another caption key."""
    try:
        checksum, _, body = path.read_bytes().removeprefix(_MAGIC).partition(b"\n")
        head, _, rows = body.partition(b"\n")
        if int(checksum, 16) != zlib.crc32(body):
            return None
        header = json.loads(head)
        if (header["size"], header["mtime_ns"]) != stamp or header["caption_key"] != caption_key:
            return None
        samples = np.frombuffer(rows, _SAMPLE, header["samples"])
        keys = rows[samples.nbytes :]
        if not _is_sound(samples, len(keys), stamp[0]):
            return None
        report = {reason: int(count) for reason, count in header["report"].items()}
        return Shard(name, stamp, samples, keys, report, str(header["digest"]))
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


def _save_index(path: Path, shard: Shard, caption_key: str) -> None:
    """Writes the index, at once for all readers; in a folder that cannot be written it lives in memory only."""
    header = {"size": shard.stamp[0], "mtime_ns": shard.stamp[1], "caption_key": caption_key}
    header |= {"samples": len(shard.samples), "report": shard.report, "digest": shard.digest}
    body = json.dumps(header).encode() + b"\n" + shard.samples.tobytes() + shard.keys
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        if path.exists() and not path.read_bytes().startswith(_MAGIC):
            return  # somebody else's file
        temporary.write_bytes(_MAGIC + f"{zlib.crc32(body):08x}\n".encode() + body)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()


def _index_tar(path: Path, name: str, stamp: tuple[int, int], caption_key: str) -> Shard:
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
            text = opened(path, stamp).read(start, size)
            written = written_captions(text, (caption_key or "caption") if kind == "json" else "")
            captions = usable_captions(written)
            report["unusable_captions"] += len(written) - len(captions)
            if captions:
                keys += key.encode()
                rows.append((*places["image"], start, size, kind == "json", len(keys)))
                digest.update(json.dumps([key, captions]).encode() + b"\n")
                break
        else:
            report["pictures_without_captions"] += 1
    return Shard(name, stamp, np.array(rows, _SAMPLE), bytes(keys), dict(+report), digest.hexdigest())


Places = dict[str, tuple[int, int]]  # "image", "txt" and "json" -> where it starts and its size; none is empty


def _samples(path: Path, tar_size: int, report: Counter[str]) -> dict[str, Places]:
    """Returns key -> places, in the order of the keys' first members.

    Where a key ends, shards do not agree: it may have dots of its own (v1.0000.jpg, v1.0000.txt), or a member an ending
    of several parts (0000.image.jpg, 0000.caption.txt). Members belong together whose names are the same up to the last
    dot; those that find no other so, whose names are the same up to the first, unless keys of the shard go on there.
    """
    members: dict[str, list[tuple[str, int, int]]] = {}
    for name, start, size in _members(path, tar_size, report):
        folder, last = posixpath.split(posixpath.normpath(name))
        stem, _, ending = last.rpartition(".")
        kind = _KINDS.get(ending.lower())
        if stem and kind is not None and not last.startswith("."):  # hidden files, such as macOS puts beside others
            members.setdefault(posixpath.join(folder, stem), []).append((kind, start, size))
    kinds = {key: {kind for kind, _, _ in found} for key, found in members.items()}
    whole = {key for key, there in kinds.items() if "image" in there and len(there) > 1}
    dotted = {_to_first_dot(key) for key in whole} - whole
    shortened = {key: key if key in whole or (first := _to_first_dot(key)) in dotted else first for key in members}
    samples: dict[str, Places] = {key: {} for key in shortened.values()}
    repeated = set()
    # What belongs together whole comes first: a member such as 0000.depth.png only fills a gap of 0000.
    for key in sorted(members, key=lambda key: key not in whole):
        places = samples[shortened[key]]
        for kind, start, size in members[key]:
            if kind in places:
                repeated.add(shortened[key])
            elif size:
                places[kind] = (start, size)
    report["repeated_keys"] = len(repeated)
    return samples


def _to_first_dot(key: str) -> str:
    folder, last = posixpath.split(key)
    return posixpath.join(folder, last.partition(".")[0])


def _members(path: Path, tar_size: int, report: Counter[str]) -> Iterator[tuple[str, int, int]]:
    """Yields name, start and size of the files that are whole in a tar and safe to use.

    Behind its end another tar may stand: `cat a.tar b.tar` is a habit.
    """
    if tar_size < _BLOCK:
        report["truncated_shards"] += 1
        return
    start, whole = 0, True
    with path.open("rb") as file:
        while whole and start is not None:
            file.seek(start)
            try:
                tar = tarfile.open(fileobj=file, mode="r:", encoding="utf-8")  # noqa: SIM115
            except tarfile.ReadError as error:
                if not start:
                    message = f"{path}: not a tar file; unpack it if it is compressed, or take it anew"
                    raise UserError(message) from error
                whole = False
                break
            end = start
            # A damaged header may have a negative size, or lead backwards and so for ever in a circle.
            while (member := _next_member(tar)) is not None and member.size >= 0 and tar.offset > end:
                end = tar.offset
                tar.members.clear()  # it would keep every header
                if not _is_safe(member):
                    report["unsafe_members"] += not member.isdir()
                elif member.offset_data + member.size <= tar_size:
                    yield member.name, member.offset_data, member.size
            # After the last member stands a block of zeros; `tarfile` also ends at a damaged header without a word.
            file.seek(min(end, tar_size))
            whole = file.read(_BLOCK) == bytes(_BLOCK)
            start = _next_block_of_data(file)
    report["truncated_shards"] += not whole


def _next_block_of_data(file: BinaryIO) -> int | None:
    """Where the first block begins that is not all zeros, from where the file stands; None where there is none."""
    place = file.tell()
    while chunk := file.read(2048 * _BLOCK):
        if found := len(chunk.lstrip(b"\0")):
            return place + (len(chunk) - found) // _BLOCK * _BLOCK
        place += len(chunk)
    return None


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


def written_captions(text: bytes, field: str) -> list[Any]:
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

    def __del__(self, close=os.close):  # a default: at the interpreter's end the module's names are gone
        if (number := getattr(self, "_number", None)) is not None:
            close(number)

    def read(self, start: int, size: int) -> bytes:
        return os.pread(self._number, size, start)


@lru_cache(maxsize=256)
def opened(path: Path, stamp: tuple[int, int]) -> _Descriptor:
    """Returns this process's descriptor of a shard; a shard that was written anew is opened anew."""
    del stamp
    return _Descriptor(path)
