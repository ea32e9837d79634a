"""Files that tell of pictures: text and JSON read, and their fields checked, with errors that name the row."""

import csv
import io
import json
import posixpath
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskvlm_jax.data.sources.written_text import encoding_of
from maskvlm_jax.runtime.errors import UserError, few

Json = Any  # what `json.loads` gives back: nothing is known of it before it is checked


def rows(entries: list[Json], file: str) -> Iterator[tuple[str, Json]]:
    """Yields each entry of a JSON list after the words that an error names it with."""
    for number, entry in enumerate(entries, start=1):
        yield f"{file} row {number}", entry


def csv_rows(text: str, file: str) -> Iterator[tuple[str, list[str]]]:
    """Rows of a CSV table after the words that an error names them with: the header first, its cells stripped, then
    those that are not empty, each with as many cells as it."""
    # `strict` turns a quote that is never closed into an error; without it the rest of the file becomes one cell.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip() for column in next(reader, [])]
        yield f"{file} row 1", header
        for row in reader:
            where = f"{file} row {reader.line_num}"
            if not "".join(row).strip(" \t\x1a"):  # the last as DOS ended files
                continue
            if len(row) != len(header):
                raise UserError(
                    f"{where}: {len(row)} columns instead of {len(header)}; put quotes around a text with commas"
                )
            yield where, row
    except csv.Error as error:
        raise UserError(f"{file} row {reader.line_num}: {error}; check the quotes") from error


def load_json(text: str, where: str) -> Json:
    """What JSON says; a UserError that begins with `where` if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: invalid JSON: {error}") from error


def field(entry: Json, key: str, kind: type | tuple[type, ...], where: str) -> Json:
    """Returns `entry[key]`, which must be there and be of type `kind`."""
    if not isinstance(entry, dict):
        raise UserError(f"{where}: a JSON object is expected, not {type(entry).__name__}")
    if key not in entry:
        raise UserError(f"{where}: the key {key!r} is missing; there are {few(sorted(entry)) or 'none'}")
    if not isinstance(entry[key], kind):
        raise UserError(f"{where}: {key!r} has the wrong type: {type(entry[key]).__name__}")
    return entry[key]


def picture_name(name: str, where: str) -> str:
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


def read_text(path: Path, kind: str, flag: str = "--config.data.root") -> str:
    """A file in UTF-8, or in UTF-16 with a mark; a UserError names its row, or the flag to check.

    Args:
        kind: what the file is, for messages.
    """
    try:
        written = path.read_bytes()
        return written.decode("utf-16" if encoding_of(written) == "utf-16" else "utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: the {kind} cannot be read ({error.strerror}); check {flag}") from error
    except UnicodeDecodeError as error:
        row = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path.name} row {row}: not UTF-8 text; save the file as UTF-8") from error
