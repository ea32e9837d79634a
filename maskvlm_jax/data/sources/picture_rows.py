"""Rows about pictures of a folder: what readers of annotated sets share. Each row is an example with one text."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from maskvlm_jax.data.sources.annotations import Json, load_json, read_text, rows
from maskvlm_jax.data.sources.base import Listed
from maskvlm_jax.data.sources.files import PictureFolder, picture_folder, root_folder
from maskvlm_jax.data.sources.written_text import usable_captions
from maskvlm_jax.runtime import buckets
from maskvlm_jax.runtime.errors import UserError, few


class Row(NamedTuple):
    """An example as its file has it.

    where: its row, for messages; id: "" = it has none, and gets one of its first picture and its place.
    pictures: their names, "" where one is absent; text: its caption, "" where it is absent.
    known: what else is known of it, of every row of a file by the same keys.
    """

    where: str
    id: str
    pictures: tuple[str, ...]
    text: str
    known: Mapping[str, Any]


def split_file(data: Mapping[str, Any], split: str, kind: str) -> Path:
    """The file of a split, `data.splits`, below `data.root`, which must be on disk.

    Args:
        kind: of the set, for messages.
    Raises:
        UserError: there is no such folder or no such split.
    """
    buckets.local_folder(data["root"], f"a set of kind {kind}")
    if split not in data["splits"]:
        there = few(sorted(data["splits"])) or "none"
        raise UserError(f"there is no split {split!r} in --config.data.splits; choose from {there}")
    return root_folder(data["root"]) / data["splits"][split]


def json_rows(path: Path) -> Iterator[tuple[str, Json]]:
    """Each entry of a JSON list, or of JSON lines whatever the file's ending, after the words that name its row."""
    text = read_text(path, "annotation file")
    if text.lstrip().startswith("["):
        yield from rows(load_json(text, path.name), path.name)
        return
    # Not `splitlines`: it also breaks at characters such as U+2028, which may stand unescaped in a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path.name} row {number}", load_json(line, f"{path.name} row {number}")


class PictureRows(Listed):
    """The rows whose pictures are there, with `known` of each.

    `report` counts what was left out: `missing_pictures`, and rows that are `rows_without_picture`, `rows_without_text`
    or `repeated_rows`, beside what `dropped` counts already.

    Args:
        data: `config.data`.
        path: the file of the rows, for messages.
        read: the rows of it.
        dropped: counts of rows that were left out before.
    Raises:
        UserError: there is no such picture folder, too many pictures are missing, two different rows have one id, or
            no row is left.
    """

    def __init__(self, data: Mapping[str, Any], path: Path, read: Iterable[Row], dropped: Counter[str]):
        folder = picture_folder(root_folder(data["root"]), data["images"])
        found = _different(read, dropped)
        names = dict.fromkeys(name for row in found for name in row.pictures if name)
        self._pictures = PictureFolder(folder, list(names), data["max_missing"], dropped)
        there = [row for row in found if all(name in self._pictures for name in row.pictures if name)]
        dropped["rows_without_picture"] = len(found) - len(there)
        texts = [usable_captions([row.text]) for row in there]
        dropped["rows_without_text"] = texts.count([])
        used = [row for row, text in zip(there, texts, strict=True) if text]
        if not used:
            raise UserError(f"{path}: no row can be used ({dict(+dropped)})")
        self._names = [row.pictures for row in used]
        known = {key: [row.known[key] for row in used] for key in used[0].known}
        super().__init__([row.id for row in used], [text for text in texts if text], report=dict(+dropped), **known)

    def image(self, index: int) -> bytes:
        """The bytes of the first picture's file; b"" where it cannot be read."""
        return self.picture(index, 0)

    def picture(self, index: int, number: int) -> bytes:
        """The same of the picture `number` of an example, from 0 on."""
        return self._pictures.read(self._names[index][number])

    def _told(self, index: int) -> list[Any]:
        return [*super()._told(index), self._names[index]]


def _different(read: Iterable[Row], dropped: Counter[str]) -> list[Row]:
    """The rows, each with an id of its own; those that say the same once more are left out."""
    found: dict[str, Row] = {}
    for row in read:
        named = row._replace(id=row.id or f"{row.pictures[0]}#{len(found)}")
        other = found.setdefault(named.id, named)
        if other is named:
            continue
        if other[1:] != named[1:]:
            raise UserError(f"{row.where}: the id {row.id!r} is that of {other.where} too; give each row its own")
        dropped["repeated_rows"] += 1
    return list(found.values())
