"""Caption files (CSV, JSONL, and the JSON of several data sets) and split lists: text on disk to names and captions."""

import csv
import io
import json
import posixpath
import re
import unicodedata
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from maskvlm_jax.data.sources.written_text import encoding_of
from maskvlm_jax.runtime.errors import UserError, few

Json = Any  # what `json.loads` gives back: nothing is known of it before it is checked


class CaptionTable(NamedTuple):
    """What a caption file says, in its own order.

    Attributes:
      captions: picture name -> its captions as they are written in the file.
      splits: split name -> the pictures in it; empty where the format has no splits.
    """

    captions: dict[str, list[str]]
    splits: dict[str, list[str]]


def read_captions(path: Path) -> CaptionTable:
    """Reads a caption file, whose format is told by its ending and content.

    `.csv`, `.txt`: header `image,caption`, one row a caption. `.jsonl`: one object a line with `image` and `captions`
    (a list) or `caption`. `.json`: COCO captions (`images`, `annotations`); a Karpathy split (`images` that have
    `split` and `sentences`; `restval` counts as `train`); ALBEF's, BLIP's and LAVIS's list (`image`, and `caption`, a
    text or a list of them); an object {picture: caption} or {picture: [captions]}, or of two columns, `image` and
    `caption`; Visual Genome's region descriptions (a list of pictures with `regions` that have a `phrase`), which need
    its `image_data.json` beside them; SBU's list (`image_urls`, `captions`). Where a picture has an address, its name
    is the last part of it, for Visual Genome the last two parts.

    Raises:
      UserError: the file is missing or malformed; the message names the row.
    """
    parsers = {".csv": _parse_csv, ".txt": _parse_csv, ".jsonl": _parse_jsonl}
    parsers[".json"] = partial(_parse_json, folder=path.parent)
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
            if not "".join(row).strip(" \t\x1a"):  # the last as DOS ended files
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


def _parse_json(text: str, file: str, folder: Path) -> CaptionTable:
    document = _load_json(text, file)
    if isinstance(document, list) and document and isinstance(document[0], dict) and "image" in document[0]:
        return _parse_pairs(document, file)
    if isinstance(document, list):
        of_regions = document and isinstance(document[0], dict) and "regions" in document[0]
        if not of_regions and not (folder / "image_data.json").is_file():
            raise UserError(
                f"{file}: a list of what is not known; give a list of {{image, caption}}, a mapping of names to "
                "captions, or COCO's, Karpathy's, Visual Genome's or SBU's own file"
            )
        return _parse_visual_genome(document, file, folder / "image_data.json")
    if isinstance(document, dict) and "image_urls" in document:
        return _parse_sbu(document, file)
    if isinstance(document, dict) and document.keys() in ({"image", "caption"}, {"image", "captions"}):
        return _parse_pairs(_of_columns(document, file), file)
    if isinstance(document, dict) and _names_pictures(document):
        captions: dict[str, list[str]] = {}
        for name, written in json.loads(text, object_pairs_hook=list):  # a name that stands twice stays so
            captions.setdefault(_picture_name(name, file), []).extend(_several(written))
        return CaptionTable(captions, {})
    images = _field(document, "images", list, file)
    if "annotations" in document:
        return _parse_coco(images, _field(document, "annotations", list, file), file)
    return _parse_karpathy(images, file)


def _of_columns(document: dict[str, Json], file: str) -> list[Json]:
    """Rows of a table that was written column by column, or of its only row."""
    image, written = document["image"], document.get("caption", document.get("captions"))
    if isinstance(image, str):
        return [{"image": image, "caption": written}]
    images, captions = _field(document, "image", list, file), written
    if not isinstance(captions, list) or len(images) != len(captions):
        raise UserError(f"{file}: image and caption must be lists of one length; take the file anew")
    return [{"image": name, "caption": caption} for name, caption in zip(images, captions, strict=True)]


def _names_pictures(document: dict[str, Json]) -> bool:
    """Whether it maps names of pictures to captions."""
    return bool(document) and "images" not in document and all(map(_is_caption, document.values()))


def _is_caption(written: Json) -> bool:
    """Whether it is a text or a list of texts."""
    return isinstance(written, str) or (isinstance(written, list) and all(isinstance(text, str) for text in written))


def _several(written: str | list[str]) -> list[str]:
    return [written] if isinstance(written, str) else list(written)


def _parse_pairs(entries: list[Json], file: str) -> CaptionTable:
    captions: dict[str, list[str]] = {}
    for where, entry in _rows(entries, file):
        name, written = _field(entry, "image", str, where), _field(entry, "caption", (str, list), where)
        if not _is_caption(written):
            raise UserError(f"{where}: caption must be a text or a list of texts")
        captions.setdefault(_picture_name(name, where), []).extend(_several(written))
    return CaptionTable(captions, {})


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


def _parse_visual_genome(pictures: list[Json], file: str, image_data: Path) -> CaptionTable:
    if not image_data.is_file():
        raise UserError(f"{image_data}: no such file; {file} needs it for the names of its pictures, put it there")
    data = _load_json(_read_text(image_data, "picture list"), image_data.name)
    if not isinstance(data, list):
        raise UserError(f"{image_data.name}: a JSON list is expected, not {type(data).__name__}")
    names: dict[int | str, str] = {}
    for where, entry in _rows(data, image_data.name):
        key = _field(entry, "image_id", (int, str), where)
        if key in names:
            raise UserError(f"{where}: image_id {key!r} is used twice; give each picture an id of its own")
        names[key] = _name_in_address(_field(entry, "url", str, where), where, parts=2)
    captions: dict[str, list[str]] = {}
    for where, entry in _rows(pictures, file):
        regions = _field(entry, "regions", list, where)
        key = _field(entry, "image_id" if "image_id" in entry else "id", (int, str), where)
        if key not in names:
            raise UserError(f"{where}: picture {key!r} is not in {image_data.name}; take both files of one release")
        captions.setdefault(names[key], []).extend(_field(region, "phrase", str, where) for region in regions)
    return CaptionTable(captions, {})


def _parse_sbu(document: Json, file: str) -> CaptionTable:
    addresses, written = _field(document, "image_urls", list, file), _field(document, "captions", list, file)
    if len(addresses) != len(written):
        raise UserError(f"{file}: {len(addresses)} image_urls but {len(written)} captions; take the file anew")
    captions: dict[str, list[str]] = {}
    for number, (address, caption) in enumerate(zip(addresses, written, strict=True), start=1):
        where = f"{file} row {number}"
        if not isinstance(address, str) or not isinstance(caption, str):
            raise UserError(f"{where}: image_urls and captions must be strings")
        captions.setdefault(_name_in_address(address, where, parts=1), []).append(caption)
    return CaptionTable(captions, {})


def _name_in_address(address: str, where: str, parts: int) -> str:
    """The picture's name: the last parts of an address' path."""
    try:
        path = urlsplit(address).path
    except ValueError as error:  # such as half an IPv6 address
        raise UserError(f"{where}: {address!r} is not an address: {error}") from error
    return _picture_name("/".join(path.split("/")[-parts:]), where)


def _rows(entries: list[Json], file: str) -> Iterator[tuple[str, Json]]:
    """Yields each entry of a JSON list after the words that an error names it with."""
    for number, entry in enumerate(entries, start=1):
        yield f"{file} row {number}", entry


def _load_json(text: str, where: str) -> Json:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: invalid JSON: {error}") from error


def _field(entry: Json, key: str, kind: type | tuple[type, ...], where: str) -> Json:
    """Returns `entry[key]`, which must be there and be of type `kind`."""
    if not isinstance(entry, dict):
        raise UserError(f"{where}: a JSON object is expected, not {type(entry).__name__}")
    if key not in entry:
        raise UserError(f"{where}: the key {key!r} is missing; there are {few(sorted(entry)) or 'none'}")
    if not isinstance(entry[key], kind):
        raise UserError(f"{where}: {key!r} has the wrong type: {type(entry[key]).__name__}")
    return entry[key]


def _picture_name(name: str, where: str) -> str:
    """The name in its shortest form, its accents composed; a name that leads out of the picture folder is refused."""
    if not name.isprintable() and _has_half_a_letter(name):
        raise UserError(f"{where}: picture name {name!r} is not UTF-8 text; correct it")
    shortest = unicodedata.normalize("NFC", posixpath.normpath(name.strip()))
    if shortest in (".", "..") or shortest.startswith(("/", "../")) or "\0" in shortest:
        raise UserError(f"{where}: picture name {name!r} is not a path inside the picture folder; correct it")
    return shortest


def _has_half_a_letter(text: str) -> bool:
    """Whether it holds half of a surrogate pair, as JSON can, which no file name and no tokenizer takes."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _read_text(path: Path, kind: str, flag: str = "--config.data.root") -> str:
    try:
        written = path.read_bytes()
        return written.decode("utf-16" if encoding_of(written) == "utf-16" else "utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: the {kind} cannot be read ({error.strerror}); check {flag}") from error
    except UnicodeDecodeError as error:
        row = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path.name} row {row}: not UTF-8 text; save the file as UTF-8") from error


def read_split_list(path: Path, flag: str) -> list[str]:
    """Picture names, one a line; blank lines are skipped.

    Args:
      flag: what names the file.

    Raises:
      UserError: the file cannot be read, or a name leads out of the picture folder.
    """
    lines = re.split(r"\r\n|\r|\n", _read_text(path, "split list", flag))
    return [_picture_name(line, f"{path.name} row {row}") for row, line in enumerate(lines, start=1) if line.strip()]
