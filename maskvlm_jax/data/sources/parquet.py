"""Data source `parquet`: tables with a column of encoded pictures, as Hugging Face hubs ship them."""

import bisect
import hashlib
import itertools
import json
import operator
import posixpath
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from maskvlm_jax.data.sources import remote
from maskvlm_jax.data.sources.base import Source
from maskvlm_jax.data.sources.columns import announce, choose_captions, choose_column, class_captions, read_by_fields
from maskvlm_jax.data.sources.last_results import LastResults
from maskvlm_jax.data.sources.parquet_footer import Footer, is_list, read_footer
from maskvlm_jax.data.sources.shards import find_shards, pattern_of
from maskvlm_jax.data.sources.written_text import usable_captions
from maskvlm_jax.runtime.errors import UserError

_USUAL_PICTURES = ("image", "jpg", "jpeg", "png", "webp", "img", "picture", "image_bytes", "bytes")
_USUAL_CAPTIONS = ("caption", "captions", "text", "texts", "sentences", "sentence", "sentences_raw", "raw", "alt_text")
_NESTED_CAPTIONS = tuple(f"{outer}.{inner}" for outer in _USUAL_CAPTIONS for inner in _USUAL_CAPTIONS)
_OPENING_THREADS = 8  # a network file system answers several at a time
_KEPT_GROUPS, _KEPT_CAPTIONS = 2, 64  # row groups; one with pictures may be hundreds of megabytes


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """The files `data.splits[split]` in the folder `data.root`, on disk or in a bucket."""
    shards = pattern_of(data, split)
    root = remote.local_root(data["root"], "parquet", [shards])
    keys = {"image_key": data["image_key"], "caption_key": data["caption_key"], "others": read_by_fields(data)}
    source = Parquet(root=root, shards=shards, **keys)
    announce(data["root"], *source.columns)
    return source


class Parquet:
    """Rows of Parquet files; an example's id is SHARD/ROW, with the file's name relative to the root.

    A row group is the least that can be read: with examples in random order each costs one, hundreds of pictures for
    the sake of one. Shuffled training should read shards that `python -m maskvlm_jax.prepare` makes of these; reading
    in order, as it does and evaluation does, is fast.

    A set of classes may have no texts: where a column of whole numbers is among `others`, and no text is found, the
    names of the classes are the captions. Hugging Face's tables hold these names; else they are the numbers.

    Which rows lack a picture or a caption is not known before they are read: they are b"" and [], and `report` is
    empty.

    Attributes:
        classes: names of classes of the first column of `others` that has some.
    """

    def __init__(
        self, *, root: str, shards: str, image_key: str = "", caption_key: str = "", others: Sequence[str] = ()
    ):
        """Reads the files' footers.

        Args:
          root: folder that `shards` is relative to.
          shards: glob such as "data/train-*.parquet", or names such as "{000..099}.parquet".
          image_key: column of binaries or of {bytes, path}; "" tells it by its type and name.
          caption_key: column of texts or of lists of texts, or COLUMN.FIELD of structs or lists of structs; "" tells it
            by its type and name.
          others: columns that are in the examples too; those that are not there are left out.

        Raises:
          UserError: no file, one that is not Parquet, no row, or columns that are not there or cannot be told.
        """
        names = find_shards(root, shards, ".parquet")
        self._root = Path(root).expanduser()
        with ThreadPoolExecutor(_OPENING_THREADS) as pool:
            footers = list(pool.map(partial(read_footer, self._root), names))
        pictures, captions, where = footers[0].pictures, footers[0].captions, str(self._root / names[0])
        self._image = choose_column(pictures, image_key, _USUAL_PICTURES, flag="image_key", where=where, by_type=True)
        usual = (*_USUAL_CAPTIONS, *_NESTED_CAPTIONS)
        self._others = [name for name in others if name in pictures and name != self._image]
        self._pictures = pictures
        named = footers[0].classes
        self.classes = next((named[name] for name in self._others if name in named), ())
        numbered = [name for name in self._others if name in footers[0].numbers]
        self._caption, self._of_classes = choose_captions(captions, numbered, caption_key, usual, where=where)
        # The column, and the field of its structs that is read.
        self._texts = (self._caption, "") if self._caption in pictures else tuple(self._caption.rsplit(".", 1))
        for name, footer in zip(names, footers, strict=True):
            self._check_columns(footer, str(self._root / name), names[0])
        self._groups = [group for footer in footers for group in footer.groups]
        self._starts = [0, *itertools.accumulate(group.rows for group in self._groups)]
        self._digests = [(name, footer.digest) for name, footer in zip(names, footers, strict=True)]
        self._picture_tables, self._caption_tables = LastResults(_KEPT_GROUPS), LastResults(_KEPT_CAPTIONS)
        self.report: dict[str, int] = {}
        if not len(self):
            raise UserError(f"{self._root / shards}: there is no row; check the files")
        self._check_bytes(where, footers[0])

    @property
    def columns(self) -> tuple[str, str]:
        """Those of pictures and captions."""
        return self._image, self._caption

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns id, encoded picture and captions; b"" and [] stand for what is not there or cannot be read."""
        number, place = self._place(index)
        columns = list(dict.fromkeys([self._image, self._texts[0], *self._others]))
        table = self._picture_tables.get(number, partial(self._read, number, columns))
        if table is None:
            return {"id": self.id(index), "image": b"", "captions": []}
        cells = {name: table.column(name)[place].as_py() for name in self._others}
        others = {name: self._picture(cell) if self._pictures[name] else cell for name, cell in cells.items()}
        image = self._picture(table.column(self._image)[place].as_py())
        return others | {"id": self.id(index), "image": image, "captions": self._captions(table, place)}

    def _captions(self, table: pa.Table, place: int) -> list[str]:
        column, field = self._texts
        if self._of_classes:
            return class_captions(table.column(column)[place].as_py(), self.classes)
        return _captions(table.column(column)[place], field)

    def _picture(self, cell: bytes | dict[str, Any] | None) -> bytes:
        """The bytes in a cell, or of the file below the root that it names; b"" where there is neither."""
        if not isinstance(cell, dict):
            return cell or b""
        path = cell.get("path")
        path = path if isinstance(path, str) else ""
        if cell["bytes"] or not path:
            return cell["bytes"] or b""
        relative = posixpath.normpath(path)
        if relative.startswith(("/", "..")):
            return b""
        try:
            return (self._root / relative).read_bytes()
        except (OSError, ValueError):  # a name with a zero byte
            return b""

    def id(self, index: int) -> str:
        """Returns SHARD/ROW."""
        number, place = self._place(index)
        group = self._groups[number]
        return f"{group.shard.removesuffix('.parquet')}/{group.first_row + place}"

    def captions(self, index: int) -> list[str]:
        """Returns the captions; only their column is read."""
        number, place = self._place(index)
        table = self._caption_tables.get(number, partial(self._read, number, [self._texts[0]]))
        return [] if table is None else self._captions(table, place)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the columns' names and the files' names, sizes and footers, which tell the size of every part."""
        return hashlib.sha256(json.dumps([self._image, self._caption, self._digests]).encode()).hexdigest()

    def _check_columns(self, footer: Footer, where: str, first: str) -> None:
        """Raises UserError where a file lacks what is read of the first one."""
        texts = {column for column, fits in footer.captions.items() if fits}
        fits = footer.pictures.get(self._image) and self._caption in (footer.numbers if self._of_classes else texts)
        if not fits or not set(self._others) <= set(footer.pictures):
            columns = " and ".join(map(repr, dict.fromkeys((self._image, self._caption, *self._others))))
            raise UserError(f"{where}: columns {columns} are not as in {first}; leave the file out")

    def _check_bytes(self, where: str, footer: Footer) -> None:
        """Raises UserError where pictures are named by paths alone, and the first of them is not there."""
        if self._image not in footer.without_bytes:
            return
        table = self._read(0, [self._image])
        cell = None if table is None else table.column(self._image)[0].as_py()
        if cell and not self._picture(cell):
            raise UserError(
                f"{where}: column {self._image!r} has no pictures, only paths such as {cell.get('path')!r}, and no "
                f"such file is in {self._root}; put the files there, or write the set with the pictures in it"
            )

    def _place(self, index: int) -> tuple[int, int]:
        """Returns the row group's number, and the row in it."""
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"parquet: index {index} is not among the {len(self)} rows")
        number = bisect.bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]

    def _read(self, number: int, columns: list[str]) -> pa.Table | None:
        """Returns None where the row group cannot be read."""
        group = self._groups[number]
        try:
            with pq.ParquetFile(self._root / group.shard) as file:
                table = file.read_row_group(group.number, columns=columns, use_threads=False)
        except (OSError, pa.ArrowException):
            return None
        return table if table.num_rows == group.rows else None


def _captions(cell: pa.Scalar, field: str) -> list[str]:
    """The texts of a cell, or of a field of the structs in it."""
    texts = _elements(cell)
    if field:
        texts = [text for struct in texts if struct.is_valid for text in _elements(struct[field])]
    texts = [text.value if isinstance(text, pa.DictionaryScalar) else text for text in texts if text.is_valid]
    # As bytes: Arrow does not look whether a text is UTF-8 before it makes a str of it.
    return usable_captions(text.as_buffer().to_pybytes() for text in texts if text.is_valid)


def _elements(cell: pa.Scalar) -> list[pa.Scalar]:
    """Those of a list; of anything else itself."""
    if not cell.is_valid:
        return []
    return list(cell.values) if is_list(cell.type) else [cell]
