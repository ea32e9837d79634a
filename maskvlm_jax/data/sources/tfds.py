"""Data source `tfds`: a tensorflow-datasets set that was prepared as ArrayRecord files. TensorFlow is not needed."""

import hashlib
import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from maskvlm_jax.data.sources.base import Source
from maskvlm_jax.data.sources.columns import announce, choose_captions, choose_column, class_captions, read_by_fields
from maskvlm_jax.data.sources.written_text import usable_captions
from maskvlm_jax.runtime import buckets
from maskvlm_jax.runtime.errors import UserError

_USUAL_PICTURES = ("image", "picture")
_USUAL_CAPTIONS = ("caption", "captions", "captions/text", "text", "texts", "sentences", "sentences/raw", "sentence")
_IDS = ("id", "image/filename", "image/id", "image_id")
_FORMAT = "array_record"

Example = tf_example_pb2.Example  # the record of every set


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """The split `split` of the set in the folder `data.root`, which must be on disk."""
    buckets.local_folder(data["root"], "a set of kind tfds")
    keys = {"image_key": data["image_key"], "caption_key": data["caption_key"], "others": read_by_fields(data)}
    source = Tfds(root=data["root"], split=split, **keys)
    announce(data["root"], *source.columns)
    return source


class Tfds:
    """Examples of a prepared set; a feature is named by its path in an example, such as "captions/text".

    An example's id is that of the set, where a feature `id`, `image/filename`, `image/id` or `image_id` is there, else
    SPLIT/NUMBER. A set of classes may have no texts: where one numbers classes that is among `others`, and no text is
    found, the names of the classes are the captions.

    Which examples lack a picture or a caption is not known before they are read: they are b"" and [], and
    `report` is empty.

    Attributes:
        classes: names of classes of the first feature of `others` that has some.
    """

    def __init__(
        self, *, root: str, split: str, image_key: str = "", caption_key: str = "", others: Sequence[str] = ()
    ):
        """Reads what the set says of itself.

        Args:
          root: the folder of one version of the set, such as ~/tensorflow_datasets/coco_captions/2014/1.1.0, or one
            above it with no other set in it.
          split: name of a split, or a part of it such as "train[:90%]".
          image_key: feature with the picture; "" tells it by its type and name.
          caption_key: feature with a text or a list of them; "" tells it by its type and name.
          others: features whose numbers and texts are in the examples too; those that are not there are left out.

        Raises:
          UserError: no such set or split, another file format, files that are missing, or features that are not there
            or cannot be told.
        """
        folder = _version_folder(root)
        builder = _open(folder)
        features = dict(sorted(_leaves(builder.info.features)))
        pictures = {
            path: isinstance(leaf, tfds.features.Image) and depth == 0 for path, (leaf, depth) in features.items()
        }
        texts = {path: _is_text(leaf) and depth < 2 for path, (leaf, depth) in features.items()}
        where = str(folder)
        self._image = choose_column(pictures, image_key, _USUAL_PICTURES, flag="image_key", where=where, by_type=True)
        self._others = [name for name in others if name in features and features[name][1] == 0 and not pictures[name]]
        classes = [name for name in self._others if isinstance(features[name][0], tfds.features.ClassLabel)]
        self.classes = tuple(features[classes[0]][0].names) if classes else ()
        self._caption, self._of_classes = choose_captions(texts, classes, caption_key, _USUAL_CAPTIONS, where=where)
        self._id = next((path for path in _IDS if path in features and features[path][1] == 0), "")
        self._split = split
        self._records, self._parts = _records_of(builder, split, where)
        self.report: dict[str, int] = {}

    @property
    def id_reads_record(self) -> bool:
        """Whether names stand in the records themselves, beside the pictures."""
        return bool(self._id)

    @property
    def columns(self) -> tuple[str, str]:
        """The features of pictures and captions."""
        return self._image, self._caption

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns id, encoded picture and captions; b"" and [] stand for what is not there or cannot be read."""
        example = self._read(index)
        image = next(iter(_values(example, self._image)), b"")
        others = {name: _scalar(example, name) for name in self._others}
        return others | {"id": self._name(example, index), "image": image, "captions": self._captions(example)}

    def id(self, index: int) -> str:
        """Returns the example's name; the record is read for it where the set has names of its own."""
        return self._name(self._read(index) if self._id else Example(), index)

    def captions(self, index: int) -> list[str]:
        """Returns the captions; the record is read for them, the picture is not decoded."""
        return self._captions(self._read(index))

    def _captions(self, example: Example) -> list[str]:
        if self._of_classes:
            return class_captions(_scalar(example, self._caption), self.classes)
        return usable_captions(_values(example, self._caption))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the features chosen and of the files' names, sizes and parts that are read."""
        return hashlib.sha256(json.dumps([self._image, self._caption, self._parts]).encode()).hexdigest()

    def _read(self, index: int) -> Example:
        """Returns an example without features where the record cannot be read."""
        index = self._checked(index)
        try:
            # tfds itself would decode every feature, masks and all; the record holds the picture as it was encoded.
            return Example.FromString(self._records[index])
        except (OSError, RuntimeError, ValueError, IndexError, DecodeError):
            return Example()

    def _checked(self, index: int) -> int:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"tfds: index {index} is not among the {len(self)} examples")
        return index

    def _name(self, example: Example, index: int) -> str:
        feature = example.features.feature[self._id]
        number = f"{self._split}/{self._checked(index)}"
        text = next(iter(feature.bytes_list.value), b"").decode(errors="replace")
        return text or next(map(str, feature.int64_list.value), number)


def _values(example: Example, path: str) -> list[bytes]:
    return list(example.features.feature[path].bytes_list.value)


def _scalar(example: Example, path: str) -> int | float | str | None:
    """The number or text of a feature; None where it is not there, or cannot be told."""
    feature = example.features.feature[path]
    texts = (text.decode(errors="replace") for text in feature.bytes_list.value)
    return next(iter((*feature.int64_list.value, *feature.float_list.value, *texts)), None)


def _version_folder(root: str) -> Path:
    """Returns the folder of one version of a set: the root, or the one such folder at most three levels below it."""
    path = Path(root).expanduser()
    if not root or not path.is_dir():
        raise UserError(f"data root {root!r} is not a folder; set --config.data.root=/path/to/the/set")
    found = [file.parent for depth in range(4) for file in sorted(path.glob("*/" * depth + "dataset_info.json"))]
    if not found:
        raise UserError(f"{path}: no set of tensorflow-datasets is there, which has a dataset_info.json; prepare one")
    if len(found) > 1:
        names = ", ".join(str(folder.relative_to(path)) for folder in found)
        raise UserError(f"{path}: there are several sets ({names}); set --config.data.root to one of them")
    return found[0]


def _open(folder: Path) -> tfds.core.DatasetBuilder:
    try:
        builder = tfds.builder_from_directory(folder)
        formats = {kind.value for kind in builder.info.available_file_formats()}
    except Exception as error:  # a damaged description fails wherever it happens to be read
        reason = str(error).partition("\n")[0]
        raise UserError(f"{folder}: the set cannot be opened ({reason}); prepare it anew") from error
    if _FORMAT not in formats:
        raise UserError(
            f"{folder}: the set was prepared as {', '.join(sorted(formats))}, which cannot be read at random; convert "
            f"it where TensorFlow is: tfds convert_format --dataset_version_dir={folder} --out_file_format={_FORMAT}"
        )
    return builder


def _records_of(
    builder: tfds.core.DatasetBuilder, split: str, where: str
) -> tuple[Sequence[bytes], list[tuple[str, int, int, int]]]:
    """Returns the records, and (name, size, records to skip, records to take) of each file."""
    try:
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        records = builder.as_data_source(split, deserialize_method=raw, file_format=_FORMAT)
        parts = builder.info.splits[split].file_instructions  # of the format that was just chosen
    except (ValueError, KeyError) as error:
        there = ", ".join(builder.info.splits)
        raise UserError(f"{where}: there is no split {split!r}, or nothing in it; choose from {there}") from error
    try:
        return records, [(Path(p.filename).name, Path(p.filename).stat().st_size, p.skip, p.take) for p in parts]
    except OSError as error:
        raise UserError(f"{error.filename}: the file cannot be read ({error.strerror}); prepare it anew") from error


def _leaves(
    feature: tfds.features.FeatureConnector, path: str = "", depth: int = 0
) -> Iterator[tuple[str, tuple[tfds.features.FeatureConnector, int]]]:
    """Yields path -> (feature, how many lists it is in)."""
    if isinstance(feature, tfds.features.FeaturesDict):
        for name, part in feature.items():
            yield from _leaves(part, f"{path}/{name}".removeprefix("/"), depth)
    elif isinstance(feature, tfds.features.Sequence):
        yield from _leaves(feature.feature, path, depth + 1)
    else:
        yield path, (feature, depth)


def _is_text(feature: tfds.features.FeatureConnector) -> bool:
    return isinstance(feature, tfds.features.Tensor) and np.dtype(feature.np_dtype) == object
