"""Data source `files`: a folder of pictures with a caption file beside it."""

import csv
import hashlib
import io
import json
import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from maskvlm_jax.errors import UserError

Json = Any  # what `json.loads` gives back: nothing is known of it before it is checked


class CaptionTable(NamedTuple):
    """What a caption file says, in its own order.

    Attributes:
      captions: picture name -> its captions as they are written in the file.
      splits: split name -> the pictures in it; empty where the format has no splits.
    """

    captions: dict[str, list[str]]
    splits: dict[str, list[str]]


class Files:
    """Pictures with captions on disk; see `read_captions` for the formats of the caption file.

    The order is that of the split list, or of the caption file where there is no list. An example's id is its
    picture's name relative to the picture folder. Of the captions only the white space is changed: it is collapsed.

    `report` counts what was left out of the split: `repeated_pictures` (names after the first in a list),
    `missing_pictures` (not on disk), `empty_captions` and `pictures_without_captions`.
    """

    def __init__(
        self,
        *,
        root: str,
        images: str,
        captions: str,
        split: str,
        splits: dict[str, str] | None,
        max_missing: float = 0.05,
    ):
        """Reads the captions and lists the picture folders; no picture is opened.

        Args:
          root: folder that `images`, `captions` and the split lists are relative to.
          images: picture folder; "" is `root` itself.
          captions: caption file.
          split: name of the split to serve; any name will do where neither `splits` nor the caption file has splits.
          splits: split name -> list file, one picture name a line; None takes the splits of the caption file, or all
            its pictures as the one split.
          max_missing: largest share of the split's pictures that may be missing on disk; the missing ones are left out.

        Raises:
          UserError: a path does not exist, a file is malformed, there is no such split, more than `max_missing` of its
            pictures are missing, or none is left.
        """
        root_path = _root_folder(root)
        self._folder = root_path / images
        if not self._folder.is_dir():
            raise UserError(f"{self._folder}: no such picture folder; set --config.data.images or --config.data.root")
        table = read_captions(root_path / captions)
        if splits is not None:
            names = _read_split_list(root_path / _lookup(splits, split, "the configuration"))
        elif table.splits:
            names = _lookup(table.splits, split, captions)
        else:
            names = list(table.captions)
        unique = list(dict.fromkeys(names))
        dropped = Counter(repeated_pictures=len(names) - len(unique))
        present = _drop_missing(unique, self._folder, max_missing, dropped)
        self._examples = _clean_captions(present, table.captions, dropped)
        self.report: dict[str, int] = {reason: count for reason, count in dropped.items() if count}
        if not self._examples:
            raise UserError(f"{root_path / captions}: no picture of split {split!r} has a caption ({self.report})")

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns id, encoded picture and captions; b"" stands for a file that cannot be read: no decoder takes it."""
        name, captions = self._examples[index]
        try:
            image = (self._folder / name).read_bytes()
        except OSError:
            image = b""
        return {"id": name, "image": image, "captions": list(captions)}

    def id(self, index: int) -> str:
        """Returns the picture's name relative to the picture folder."""
        return self._examples[index][0]

    def captions(self, index: int) -> list[str]:
        """Returns the picture's captions without reading the picture."""
        return list(self._examples[index][1])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the ids and captions in order; the pictures' bytes are not part of it."""
        digest = hashlib.sha256()
        for example in self._examples:
            digest.update(json.dumps(example).encode() + b"\n")
        return digest.hexdigest()


def read_captions(path: Path) -> CaptionTable:
    """Reads a caption file, whose format is told by its ending and content.

    `.csv`, `.txt`: header `image,caption`, one row a caption. `.jsonl`: one object a line with `image` and `captions`
    (a list) or `caption`. `.json`: COCO captions (`images`, `annotations`) or a Karpathy split (`images` that have
    `split` and `sentences`; `restval` counts as `train`).

    Raises:
      UserError: the file is missing or malformed; the message names the row.
    """
    parsers = {".csv": _parse_csv, ".txt": _parse_csv, ".jsonl": _parse_jsonl, ".json": _parse_json}
    ending = path.suffix.lower()
    if ending not in parsers:
        raise UserError(f"{path}: caption files end in {', '.join(parsers)}; rename or convert it")
    return parsers[ending](_read_text(path, "caption file"), path.name)


def _parse_csv(text: str, file: str) -> CaptionTable:
    # `strict` turns a quote that is never closed into an error; without it the rest of the file becomes one caption.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    captions: dict[str, list[str]] = {}
    try:
        header = next(reader, [])
        if [column.strip() for column in header] != ["image", "caption"]:
            raise UserError(f"{file} row 1: the header is {','.join(header)[:80]!r}; it must be image,caption")
        for row in reader:
            where = f"{file} row {reader.line_num}"
            if not row:
                continue
            if len(row) != 2:
                raise UserError(f"{where}: {len(row)} columns instead of 2; put quotes around a caption with commas")
            captions.setdefault(_picture_name(row[0], where), []).append(row[1])
    except csv.Error as error:
        raise UserError(f"{file} row {reader.line_num}: {error}; check the quotes") from error
    return CaptionTable(captions, {})


def _parse_jsonl(text: str, file: str) -> CaptionTable:
    captions: dict[str, list[str]] = {}
    # Not `splitlines`: it also breaks at characters such as U+2028, which may stand unescaped in a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file} row {number}"
        entry = _load_json(line, where)
        several = isinstance(entry, dict) and "captions" in entry
        written = _field(entry, "captions", list, where) if several else [_field(entry, "caption", str, where)]
        if not all(isinstance(caption, str) for caption in written):
            raise UserError(f"{where}: captions must be a list of strings")
        captions.setdefault(_picture_name(_field(entry, "image", str, where), where), []).extend(written)
    return CaptionTable(captions, {})


def _parse_json(text: str, file: str) -> CaptionTable:
    document = _load_json(text, file)
    images = _field(document, "images", list, file)
    if "annotations" in document:
        return _parse_coco(images, _field(document, "annotations", list, file), file)
    return _parse_karpathy(images, file)


def _parse_coco(images: list[Json], annotations: list[Json], file: str) -> CaptionTable:
    names: dict[int | str, str] = {}
    for where, entry in _rows(images, f"{file} images"):
        key = _field(entry, "id", (int, str), where)
        if key in names:
            raise UserError(f"{where}: id {key!r} is used twice; give each picture an id of its own")
        names[key] = _picture_name(_field(entry, "file_name", str, where), where)
    captions: dict[str, list[str]] = {name: [] for name in names.values()}
    for where, entry in _rows(annotations, f"{file} annotations"):
        key = _field(entry, "image_id", (int, str), where)
        if key not in names:
            raise UserError(f"{where}: image_id {key!r} is not among the images; remove the row or add the picture")
        captions[names[key]].append(_field(entry, "caption", str, where))
    return CaptionTable(captions, {})


def _parse_karpathy(images: list[Json], file: str) -> CaptionTable:
    captions: dict[str, list[str]] = {}
    splits: dict[str, list[str]] = {}
    for where, entry in _rows(images, f"{file} images"):
        filename = _field(entry, "filename", str, where)
        folder = _field(entry, "filepath", str, where) if "filepath" in entry else ""
        name = _picture_name(posixpath.join(folder, filename), where)
        split = _field(entry, "split", str, where)
        splits.setdefault("train" if split == "restval" else split, []).append(name)
        sentences = _field(entry, "sentences", list, where)
        captions.setdefault(name, []).extend(_field(sentence, "raw", str, where) for sentence in sentences)
    return CaptionTable(captions, splits)


def _rows(entries: list[Json], file: str) -> Iterator[tuple[str, Json]]:
    """Yields each entry of a JSON list after the words that an error names it with."""
    for number, entry in enumerate(entries, start=1):
        yield f"{file} row {number}", entry


def _load_json(text: str, where: str) -> Json:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where}: invalid JSON: {error}") from error


def _field(entry: Json, key: str, kind: type | tuple[type, ...], where: str) -> Json:
    """Returns `entry[key]`, which must be there and be of type `kind`."""
    if not isinstance(entry, dict):
        raise UserError(f"{where}: a JSON object is expected, not {type(entry).__name__}")
    if key not in entry:
        raise UserError(f"{where}: the key {key!r} is missing; there are {', '.join(sorted(entry)) or 'none'}")
    if not isinstance(entry[key], kind):
        raise UserError(f"{where}: {key!r} has the wrong type: {type(entry[key]).__name__}")
    return entry[key]


def _picture_name(name: str, where: str) -> str:
    """Returns the name in its shortest form; a name that leads out of the picture folder is refused."""
    shortest = posixpath.normpath(name.strip())
    if shortest in (".", "..") or shortest.startswith(("/", "../")) or "\0" in shortest:
        raise UserError(f"{where}: picture name {name!r} is not a path inside the picture folder; correct it")
    return shortest


def _root_folder(root: str) -> Path:
    path = Path(root).expanduser()
    if not root or not path.is_dir():
        raise UserError(f"data root {root!r} is not a folder; set --config.data.root=/path/to/the/data")
    return path


def _read_text(path: Path, kind: str) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: the {kind} cannot be read ({error.strerror}); check --config.data.root") from error
    except UnicodeDecodeError as error:
        row = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path.name} row {row}: not UTF-8 text; save the file as UTF-8") from error


def _read_split_list(path: Path) -> list[str]:
    lines = _read_text(path, "split list").split("\n")
    return [_picture_name(line, f"{path.name} row {row}") for row, line in enumerate(lines, start=1) if line.strip()]


def _lookup(splits: dict[str, Any], split: str, where: str) -> Any:
    if split not in splits:
        raise UserError(f"there is no split {split!r} in {where}; choose from {', '.join(sorted(splits))}")
    return splits[split]


def _drop_missing(names: list[str], folder: Path, max_missing: float, dropped: Counter[str]) -> list[str]:
    """Keeps the names that are on disk; more than a share of `max_missing` that are not is a UserError."""
    # One listing a folder: on a network file system a stat for each of a hundred thousand pictures takes minutes.
    on_disk = {subfolder: _list_folder(folder / subfolder) for subfolder in set(map(posixpath.dirname, names))}
    present = {name for name in names if posixpath.basename(name) in on_disk[posixpath.dirname(name)]}
    missing = [name for name in names if name not in present]
    if len(missing) > max_missing * len(names):
        raise UserError(
            f"{len(missing)} of {len(names)} pictures of the split are not in {folder} (first: {missing[0]}); "
            "set --config.data.root or raise --config.data.max_missing"
        )
    dropped["missing_pictures"] = len(missing)
    return [name for name in names if name in present]


def _list_folder(folder: Path) -> set[str]:
    # The first step of a walk is this folder's own listing; a folder that cannot be listed has no steps.
    return set(next(os.walk(folder), ("", [], []))[2])


def _clean_captions(
    names: list[str], written: dict[str, list[str]], dropped: Counter[str]
) -> list[tuple[str, list[str]]]:
    """Returns (name, captions) of the pictures that have a caption left once white space is collapsed."""
    examples = []
    for name in names:
        cleaned = [" ".join(caption.split()) for caption in written.get(name, [])]
        captions = [caption for caption in cleaned if caption]
        dropped["empty_captions"] += len(cleaned) - len(captions)
        if captions:
            examples.append((name, captions))
        else:
            dropped["pictures_without_captions"] += 1
    return examples
