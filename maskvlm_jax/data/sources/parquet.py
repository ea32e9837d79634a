"""Data source `parquet`: tables with a column of encoded pictures, as Hugging Face hubs ship them."""

import bisect
import hashlib
import itertools
import json
import operator
import posixpath
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from maskvlm_jax.data.sources import remote
from maskvlm_jax.data.sources.base import Source
from maskvlm_jax.data.sources.columns import announce, choose_column
from maskvlm_jax.data.sources.last_results import LastResults
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
    source = Parquet(root=root, shards=shards, image_key=data["image_key"], caption_key=data["caption_key"])
    announce(data["root"], *source.columns)
    return source


class Parquet:
    """Rows of Parquet files; an example's id is SHARD/ROW, with the file's name relative to the root.

    A row group is the least that can be read: with examples in random order each costs one, hundreds of pictures for
    the sake of one. Shuffled training should read shards that `python -m maskvlm_jax.prepare` makes of these; reading
    in order, as it does and evaluation does, is fast.

    Which rows lack a picture or a caption is not known before they are read: they are b"" and [], and `report` is
    empty.
    """

    def __init__(self, *, root: str, shards: str, image_key: str = "", caption_key: str = ""):
        """Reads the files' footers.

        Args:
          root: folder that `shards` is relative to.
          shards: glob such as "data/train-*.parquet", or names such as "{000..099}.parquet".
          image_key: column of binaries or of {bytes, path}; "" tells it by its type and name.
          caption_key: column of texts or of lists of texts, or COLUMN.FIELD of structs or lists of structs; "" tells it
            by its type and name.

        Raises:
          UserError: no file, one that is not Parquet, no row, or columns that are not there or cannot be told.
        """
        names = find_shards(root, shards, ".parquet")
        self._root = Path(root).expanduser()
        with ThreadPoolExecutor(_OPENING_THREADS) as pool:
            footers = list(pool.map(partial(_read_footer, self._root), names))
        pictures, captions, where = footers[0].pictures, footers[0].captions, str(self._root / names[0])
        self._image = choose_column(pictures, image_key, _USUAL_PICTURES, flag="image_key", where=where, by_type=True)
        usual = (*_USUAL_CAPTIONS, *_NESTED_CAPTIONS)
        self._caption = choose_column(captions, caption_key, usual, flag="caption_key", where=where)
        # The column, and the field of its structs that is read.
        self._texts = (self._caption, "") if self._caption in pictures else tuple(self._caption.rsplit(".", 1))
        for name, footer in zip(names, footers, strict=True):
            if not footer.pictures.get(self._image) or not footer.captions.get(self._caption):
                wanted = f"columns {self._image!r} and {self._caption!r} are not as in {names[0]}"
                raise UserError(f"{self._root / name}: {wanted}; leave the file out")
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
        table = self._picture_tables.get(number, partial(self._read, number, [self._image, self._texts[0]]))
        if table is None:
            return {"id": self.id(index), "image": b"", "captions": []}
        image = self._picture(table.column(self._image)[place].as_py())
        return {"id": self.id(index), "image": image, "captions": self._captions(table, place)}

    def _captions(self, table: pa.Table, place: int) -> list[str]:
        column, field = self._texts
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

    def _check_bytes(self, where: str, footer: "_Footer") -> None:
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


class _RowGroup(NamedTuple):
    shard: str
    number: int  # in its file
    first_row: int  # in its file
    rows: int


class _Footer(NamedTuple):
    pictures: dict[str, bool]  # column -> whether its type can hold pictures
    captions: dict[str, bool]  # column, or COLUMN.FIELD of structs, -> whether its type can hold captions
    without_bytes: set[str]  # columns of {bytes, path} in which no row has bytes
    groups: list[_RowGroup]
    digest: str  # sha256 of the footer's bytes and the file's size


def _read_footer(root: Path, name: str) -> _Footer:
    path = root / name
    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(size - 8)  # the last eight bytes are the footer's length and PAR1
            file.seek(size - 8 - int.from_bytes(file.read(4), "little"))
            digest = hashlib.sha256(f"{size} ".encode() + file.read()).hexdigest()
    except pa.ArrowException as error:
        raise UserError(f"{path}: not a whole Parquet file; take it anew") from error
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({error.strerror or error}); take it anew") from error
    if twice := [column for column, count in Counter(schema.names).items() if count > 1]:
        raise UserError(f"{path}: there are several columns {twice[0]!r}; give each a name of its own")
    rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    firsts = [0, *itertools.accumulate(rows)]
    return _Footer(
        pictures={field.name: _holds_pictures(field.type) for field in schema},
        captions={name: holds for field in schema for name, holds in _caption_columns(field).items()},
        without_bytes={field.name for field in schema if _is_all_null(metadata, f"{field.name}.bytes")},
        groups=[_RowGroup(name, number, firsts[number], count) for number, count in enumerate(rows) if count],
        digest=digest,
    )


def _is_all_null(metadata: pq.FileMetaData, path: str) -> bool:
    """Whether the statistics of the first row group say that a leaf column is null in every row."""
    if not metadata.num_row_groups:
        return False
    group = metadata.row_group(0)
    for column in map(group.column, range(group.num_columns)):
        if column.path_in_schema == path and column.statistics is not None and column.statistics.has_null_count:
            return column.statistics.null_count == group.num_rows > 0
    return False


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        parts = {kind.field(number).name: kind.field(number).type for number in range(kind.num_fields)}
        return "bytes" in parts and _holds_pictures(parts["bytes"])
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _caption_columns(field: pa.Field) -> dict[str, bool]:
    """The column and the fields of its structs, and whether each holds texts."""
    kind = field.type.value_type if _is_list(field.type) else field.type
    columns = {field.name: _holds_captions(field.type)}
    if pa.types.is_struct(kind) and not _holds_pictures(kind):
        parts = map(kind.field, range(kind.num_fields))
        columns |= {f"{field.name}.{part.name}": _holds_captions(part.type) for part in parts}
    return columns


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _holds_captions(kind: pa.DataType) -> bool:
    return _is_text(kind.value_type if _is_list(kind) else kind)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):  # a category of pandas
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


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
    return list(cell.values) if _is_list(cell.type) else [cell]
