"""What the footer of a Parquet file tells: its row groups, and what its columns can hold."""

import hashlib
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from maskvlm_jax.runtime.errors import UserError


class RowGroup(NamedTuple):
    """The least of a file that can be read."""

    shard: str
    number: int  # in its file
    first_row: int  # in its file
    rows: int


class Footer(NamedTuple):
    """What is told of one file."""

    pictures: dict[str, bool]  # column -> whether its type can hold pictures
    captions: dict[str, bool]  # column, or COLUMN.FIELD of structs, -> whether its type can hold captions
    numbers: set[str]  # columns of whole numbers
    classes: dict[str, tuple[str, ...]]  # column -> names of what it numbers
    without_bytes: set[str]  # columns of {bytes, path} in which no row has bytes
    groups: list[RowGroup]
    digest: str  # sha256 of the footer's bytes and the file's size


def read_footer(root: Path, name: str) -> Footer:
    """The footer of a file.

    Raises:
        UserError: it cannot be read, or has two columns of one name.
    """
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
    return Footer(
        pictures={field.name: _holds_pictures(field.type) for field in schema},
        captions={name: holds for field in schema for name, holds in _caption_columns(field).items()},
        numbers={field.name for field in schema if pa.types.is_integer(field.type)},
        classes=_class_names(schema),
        without_bytes={field.name for field in schema if _is_all_null(metadata, f"{field.name}.bytes")},
        groups=[RowGroup(name, number, firsts[number], count) for number, count in enumerate(rows) if count],
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
    kind = field.type.value_type if is_list(field.type) else field.type
    columns = {field.name: _holds_captions(field.type)}
    if pa.types.is_struct(kind) and not _holds_pictures(kind):
        parts = map(kind.field, range(kind.num_fields))
        columns |= {f"{field.name}.{part.name}": _holds_captions(part.type) for part in parts}
    return columns


def _class_names(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Names of classes that Hugging Face's `datasets` leaves in a file, by column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        named = {name: one["names"] for name, one in features.items() if "names" in one}
    except (KeyError, TypeError, ValueError):
        return {}
    return {
        name: tuple(names)
        for name, names in named.items()
        if isinstance(names, list) and all(isinstance(one, str) for one in names)
    }


def is_list(kind: pa.DataType) -> bool:
    """Whether it is a list of any kind."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _holds_captions(kind: pa.DataType) -> bool:
    return _is_text(kind.value_type if is_list(kind) else kind)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):  # a category of pandas
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
