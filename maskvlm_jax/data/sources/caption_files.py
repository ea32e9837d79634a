"""Caption files (CSV, JSONL, and the JSON of several data sets) and split lists: text on disk to names and captions."""

import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import urlsplit

from maskvlm_jax.data.sources import medical_texts
from maskvlm_jax.data.sources.annotations import Json, csv_rows, field, load_json, picture_name, read_text, rows
from maskvlm_jax.runtime.errors import UserError


class CaptionTable(NamedTuple):
    """What a caption file says, in its own order.

    Attributes:
      captions: picture name -> its captions as they are written in the file.
      splits: split name -> the pictures in it; empty where the format has no splits.
      left_out: counts of what the format leaves out, by reason.
    """

    captions: dict[str, list[str]]
    splits: dict[str, list[str]]
    left_out: Mapping[str, int] = MappingProxyType({})


def read_captions(path: Path, *, image_key: str = "", caption_key: str = "") -> CaptionTable:
    """Reads a caption file, whose format is told by its ending and content.

    `.csv`, `.txt`: header `image,caption`, one row a caption; a table with other columns, which `image_key` and
    `caption_key` name, see `medical_texts.read_table`; lines of an id, a tab and a caption (ROCO). `.jsonl`: one object
    a line with `image` and `captions` (a list) or `caption`, or MedICaT's figures. `.json`: COCO captions (`images`,
    `annotations`); a Karpathy split (`images` that have `split` and `sentences`; `restval` counts as `train`); ALBEF's,
    BLIP's and LAVIS's list (`image`, and `caption`, a text or a list of them); an object {picture: caption} or
    {picture: [captions]}, or of two columns, `image` and `caption`; Visual Genome's region descriptions (a list of
    pictures with `regions` that have a `phrase`), which need its `image_data.json` beside them; SBU's list
    (`image_urls`, `captions`). Where a picture has an address, its name is the last part of it, for Visual Genome the
    last two parts.

    Raises:
      UserError: the file is missing or malformed; the message names the row.
    """
    parse_csv = partial(_parse_csv, folder=path.parent, image_key=image_key, caption_key=caption_key)
    parsers = {".csv": parse_csv, ".txt": parse_csv, ".jsonl": _parse_jsonl}
    parsers[".json"] = partial(_parse_json, folder=path.parent)
    ending = path.suffix.lower()
    if ending not in parsers:
        raise UserError(f"{path}: caption files end in {', '.join(parsers)}; rename or convert it")
    if parsers[ending] is not parse_csv:
        _check_unnamed(path.name, bool(image_key or caption_key))
    return parsers[ending](read_text(path, "caption file"), path.name)


def _parse_csv(text: str, file: str, folder: Path, image_key: str, caption_key: str) -> CaptionTable:
    named = bool(image_key or caption_key)
    if file.lower().endswith(".txt") and _is_tabbed(text):
        _check_unnamed(file, named)
        return _of_texts(medical_texts.read_tabbed(text, file))
    table = csv_rows(text, file)
    header = next(table)[1]
    if named or (header != ["image", "caption"] and medical_texts.is_table(header)):
        keys = {"image_key": image_key, "caption_key": caption_key}
        return _of_texts(medical_texts.read_table(text, file, folder, **keys))
    if header != ["image", "caption"]:
        raise UserError(f"{file} row 1: the header is {','.join(header)[:80]!r}; it must be image,caption")
    captions: dict[str, list[str]] = {}
    for where, (name, caption) in table:
        captions.setdefault(picture_name(name, where), []).append(caption)
    return CaptionTable(captions, {})


def _check_unnamed(file: str, named: bool) -> None:
    """Raises UserError where columns are named of a file that has none."""
    if named:
        raise UserError(f"{file} is no table; leave --config.data.image_key and --config.data.caption_key empty")


def _is_tabbed(text: str) -> bool:
    """Whether the first line that is not empty has a tab, and no comma before it."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    return "\t" in first and "," not in first.partition("\t")[0]


def _of_texts(found: medical_texts.Texts) -> CaptionTable:
    captions, left_out = found
    return CaptionTable(captions, {}, +left_out)


def _parse_jsonl(text: str, file: str) -> CaptionTable:
    entries = _json_lines(text, file)
    first = next(entries, None)
    if first is not None and isinstance(first[1], dict) and "pdf_hash" in first[1]:
        return _of_texts(medical_texts.read_figures(_json_lines(text, file)))
    captions: dict[str, list[str]] = {}
    for where, entry in _json_lines(text, file):
        several = isinstance(entry, dict) and "captions" in entry
        written = field(entry, "captions", list, where) if several else [field(entry, "caption", str, where)]
        if not all(isinstance(caption, str) for caption in written):
            raise UserError(f"{where}: captions must be a list of strings")
        captions.setdefault(picture_name(field(entry, "image", str, where), where), []).extend(written)
    return CaptionTable(captions, {})


def _json_lines(text: str, file: str) -> Iterator[tuple[str, Json]]:
    """Each line's entry after the words that name it."""
    # Not `splitlines`: it also breaks at characters such as U+2028, which may stand unescaped in a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{file} row {number}"
            yield where, load_json(line, where)


def _parse_json(text: str, file: str, folder: Path) -> CaptionTable:
    document = load_json(text, file)
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
            captions.setdefault(picture_name(name, file), []).extend(_several(written))
        return CaptionTable(captions, {})
    images = field(document, "images", list, file)
    if "annotations" in document:
        return _parse_coco(images, field(document, "annotations", list, file), file)
    return _parse_karpathy(images, file)


def _of_columns(document: dict[str, Json], file: str) -> list[Json]:
    """Rows of a table that was written column by column, or of its only row."""
    image, written = document["image"], document.get("caption", document.get("captions"))
    if isinstance(image, str):
        return [{"image": image, "caption": written}]
    images, captions = field(document, "image", list, file), written
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
    for where, entry in rows(entries, file):
        name, written = field(entry, "image", str, where), field(entry, "caption", (str, list), where)
        if not _is_caption(written):
            raise UserError(f"{where}: caption must be a text or a list of texts")
        captions.setdefault(picture_name(name, where), []).extend(_several(written))
    return CaptionTable(captions, {})


def _parse_coco(images: list[Json], annotations: list[Json], file: str) -> CaptionTable:
    names: dict[int | str, str] = {}
    for where, entry in rows(images, f"{file} images"):
        key = field(entry, "id", (int, str), where)
        if key in names:
            raise UserError(f"{where}: id {key!r} is used twice; give each picture an id of its own")
        names[key] = picture_name(field(entry, "file_name", str, where), where)
    captions: dict[str, list[str]] = {name: [] for name in names.values()}
    for where, entry in rows(annotations, f"{file} annotations"):
        key = field(entry, "image_id", (int, str), where)
        if key not in names:
            raise UserError(f"{where}: image_id {key!r} is not among the images; remove the row or add the picture")
        captions[names[key]].append(field(entry, "caption", str, where))
    return CaptionTable(captions, {})


def _parse_karpathy(images: list[Json], file: str) -> CaptionTable:
    captions: dict[str, list[str]] = {}
    splits: dict[str, list[str]] = {}
    for where, entry in rows(images, f"{file} images"):
        filename = field(entry, "filename", str, where)
        folder = field(entry, "filepath", str, where) if "filepath" in entry else ""
        name = picture_name(posixpath.join(folder, filename), where)
        split = field(entry, "split", str, where)
        splits.setdefault("train" if split == "restval" else split, []).append(name)
        sentences = field(entry, "sentences", list, where)
        captions.setdefault(name, []).extend(field(sentence, "raw", str, where) for sentence in sentences)
    return CaptionTable(captions, splits)


def _parse_visual_genome(pictures: list[Json], file: str, image_data: Path) -> CaptionTable:
    if not image_data.is_file():
        raise UserError(f"{image_data}: no such file; {file} needs it for the names of its pictures, put it there")
    data = load_json(read_text(image_data, "picture list"), image_data.name)
    if not isinstance(data, list):
        raise UserError(f"{image_data.name}: a JSON list is expected, not {type(data).__name__}")
    names: dict[int | str, str] = {}
    for where, entry in rows(data, image_data.name):
        key = field(entry, "image_id", (int, str), where)
        if key in names:
            raise UserError(f"{where}: image_id {key!r} is used twice; give each picture an id of its own")
        names[key] = _name_in_address(field(entry, "url", str, where), where, parts=2)
    captions: dict[str, list[str]] = {}
    for where, entry in rows(pictures, file):
        regions = field(entry, "regions", list, where)
        key = field(entry, "image_id" if "image_id" in entry else "id", (int, str), where)
        if key not in names:
            raise UserError(f"{where}: picture {key!r} is not in {image_data.name}; take both files of one release")
        captions.setdefault(names[key], []).extend(field(region, "phrase", str, where) for region in regions)
    return CaptionTable(captions, {})


def _parse_sbu(document: Json, file: str) -> CaptionTable:
    addresses, written = field(document, "image_urls", list, file), field(document, "captions", list, file)
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
    return picture_name("/".join(path.split("/")[-parts:]), where)


def read_split_list(path: Path, flag: str) -> list[str]:
    """Picture names, one a line; blank lines are skipped.

    Args:
      flag: what names the file.

    Raises:
      UserError: the file cannot be read, or a name leads out of the picture folder.
    """
    lines = re.split(r"\r\n|\r|\n", read_text(path, "split list", flag))
    return [picture_name(line, f"{path.name} row {row}") for row, line in enumerate(lines, start=1) if line.strip()]
