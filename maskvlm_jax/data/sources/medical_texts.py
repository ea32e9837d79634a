"""Caption files of medical pictures, read to names and captions: ROCO's, MedICaT's, and tables of reports."""

import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from maskvlm_jax.data.sources.annotations import Json, csv_rows, field, picture_name, read_text
from maskvlm_jax.runtime.errors import UserError, few

LEAST_WORDS = 3  # of a caption or a reference, as medical M3AE (arXiv 2209.07098, its code)
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Columns of tables, where no flag names them; the first that is there.
_PICTURES = ("image", "filename", "file_name", "image_path", "path", "dicom_id", "id")
_TEXTS = ("caption", "findings", "report", "text", "impression")
_PROJECTIONS = "indiana_projections.csv"  # of Open-i's reports: which pictures one has

Texts = tuple[dict[str, list[str]], Counter[str]]  # picture -> its texts, and counts of what was left out


def read_tabbed(text: str, file: str) -> Texts:
    """ROCO's captions.txt (Pelka et al. 2018): an id, a tab and a caption a line; pictures are ID.jpg."""
    captions, left_out = {}, Counter()
    for row, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        name, _, caption = line.partition("\t")
        header = name.strip().lower() in _PICTURES and caption.strip().lower() in _TEXTS
        if name.strip() and not header:
            _add(captions, _picture_of(name, f"{file} row {row}"), _long_enough([caption], left_out))
    return captions, left_out


def read_figures(entries: Iterator[tuple[str, Json]]) -> Texts:
    """MedICaT's figures (Subramanian et al. 2020, arXiv 2010.06000): captions, and what their papers say of them.

    Pictures are HASH_URI. Figures that are told not to be of radiology are left out.
    """
    captions, left_out = {}, Counter()
    for where, entry in entries:
        name = f"{field(entry, 'pdf_hash', str, where)}_{field(entry, 'fig_uri', str, where)}"
        if entry.get("radiology") is False:
            left_out["other_figures"] += 1
            continue
        # Both are the figure's caption, as two programs found it.
        written = [next((entry[key] for key in ("s2_caption", "s2orc_caption") if entry.get(key)), "")]
        if entry.get("s2orc_references") is not None:
            written += field(entry, "s2orc_references", list, where)
        if not all(isinstance(text, str) for text in written):
            raise UserError(f"{where}: captions and references must be texts")
        _add(captions, picture_name(name, where), _long_enough(written, left_out))
    return captions, left_out


def is_table(header: Sequence[str]) -> bool:
    """Whether a header names a picture and a text by themselves: ROCO v2's ID,Caption, or a table of reports."""
    columns = {column.lower() for column in header}
    return bool(columns & {*_PICTURES, "uid"}) and bool(columns & {*_TEXTS})


def read_table(text: str, file: str, folder: Path, *, image_key: str, caption_key: str) -> Texts:
    """Rows of a CSV table; a quoted cell may have several lines.

    Args:
        folder: of the file; Open-i's reports name their pictures in `indiana_projections.csv` there.
        image_key: the column that names pictures; "" = one of a usual name. A name without an ending is a JPEG's.
        caption_key: columns of texts: "findings,impression" are two captions, "findings+impression" are one; "" = one
            of a usual name.
    Raises:
        UserError: there is no such column, a row is malformed, or the list of Open-i's pictures is not there.
    """
    table = csv_rows(text, file)
    header = next(table)[1]
    pictures: dict[str, list[str]] | None = None
    if not image_key and "uid" in header:
        if not (folder / _PROJECTIONS).is_file():
            raise UserError(
                f"{file}: which pictures a report of Open-i has {_PROJECTIONS} says; put it beside this file, or set "
                "--config.data.image_key to the column that names pictures"
            )
        pictures, image_key = _projections(folder / _PROJECTIONS), "uid"
    named = _column(header, image_key, _PICTURES, "image_key", file)
    texts = [
        [_column(header, key.strip(), _TEXTS, "caption_key", file) for key in one.split("+")]
        for one in caption_key.split(",")
    ]
    captions, left_out = {}, Counter()
    for where, row in table:
        written = [" ".join(row[column] for column in columns).strip() for columns in texts]
        key = row[named].strip()
        names = ([_picture_of(key, where)] if key else []) if pictures is None else pictures.get(key, [])
        left_out["rows_without_picture"] += not names
        for name in names:
            _add(captions, name, written)
    return captions, left_out


def _projections(path: Path) -> dict[str, list[str]]:
    """Number of a report -> names of its pictures."""
    table = csv_rows(read_text(path, "list of projections"), path.name)
    header = next(table)[1]
    number, name = (_column(header, key, (), "image_key", path.name) for key in ("uid", "filename"))
    found: dict[str, list[str]] = {}
    for where, row in table:
        found.setdefault(row[number].strip(), []).append(picture_name(row[name], where))
    return found


def _column(header: Sequence[str], key: str, usual: Sequence[str], flag: str, file: str) -> int:
    """The place of the column `key`; where that is "", of the first with a usual name."""
    lower = [column.lower() for column in header]
    if key:
        found = header.index(key) if key in header else None
    else:
        found = next((lower.index(name) for name in usual if name in lower), None)
    if found is None:
        wrong = f"there is no column {key!r}" if key else f"no name tells which column is the {flag}"
        raise UserError(f"{file}: {wrong}; set --config.data.{flag} to one of {few(header) or 'its columns'}")
    return found


def _picture_of(name: str, where: str) -> str:
    """The file of a picture that may be named without its ending."""
    name = picture_name(name, where)
    return name if posixpath.splitext(name)[1].lower() in _ENDINGS else f"{name}.jpg"


def _add(captions: dict[str, list[str]], name: str, written: Sequence[str]) -> None:
    """Texts of a picture, those that are not there yet."""
    there = captions.setdefault(name, [])
    there += [text for text in dict.fromkeys(written) if text not in there]


def _long_enough(written: Sequence[str], left_out: Counter[str]) -> list[str]:
    kept = [text for text in written if len(text.split()) >= LEAST_WORDS]
    left_out["short_captions"] += sum(bool(text.strip()) for text in written) - len(kept)
    return kept
