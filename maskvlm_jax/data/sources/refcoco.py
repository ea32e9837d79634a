"""Data source `refcoco`: referring expressions of COCO's pictures (RefCOCO, RefCOCO+, RefCOCOg), an example each.

`data.captions` names, in `data.root`, one of

    refs(unc).json          the refs of github.com/lichengunc/refer, once they are JSON (`CONVERT`), with its
                            `instances.json` beside them, which knows the boxes; splits train, val, testA, testB
    a list of expressions   {"image", "text"} and, as far as they are known, "ref_id", "split", and "bbox" [x, y, w, h]
                            with "width" and "height" of the picture: the lists that ALBEF's release trains on. Where
                            each split has a file of its own, `data.splits` names it.

`dets.json` beside it, where there is one, holds what a detector found: a list of boxes for each picture, by its number
in COCO. They are what an expression's box is chosen from.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from maskvlm_jax.data.sources.annotations import Json, field, load_json, picture_name, read_text, rows
from maskvlm_jax.data.sources.base import Listed, Source
from maskvlm_jax.data.sources.files import PictureFolder, picture_folder, root_folder
from maskvlm_jax.data.sources.written_text import usable_captions
from maskvlm_jax.runtime import buckets
from maskvlm_jax.runtime.errors import UserError, few

INSTANCES, DETECTIONS = "instances.json", "dets.json"
CONVERT = "import json, pickle; json.dump(pickle.load(open('{0}', 'rb')), open('{1}', 'w'))"

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the picture as it is stored


class Expression(NamedTuple):
    """An expression and what is known of it; `box` and `size` (height, width) are None where they are not."""

    id: str
    picture: str
    number: int | None  # of the picture in COCO
    text: str
    split: str
    box: Box | None
    size: tuple[int, int] | None


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """The split `split` of the folder `data.root`, which must be on disk."""
    buckets.local_folder(data["root"], "a set of kind refcoco")
    root = root_folder(data["root"])
    files = dict(data["splits"])
    if files and split not in files:
        raise UserError(f"there is no split {split!r} in --config.data.splits; choose from {few(sorted(files))}")
    return RefCoco(
        file=root / (files[split] if files else data["captions"]),
        folder=picture_folder(root, data["images"]),
        split=split,
        max_missing=data["max_missing"],
    )


def existing_splits(data: Mapping[str, Any]) -> Sequence[str]:
    """Those that have a file, or those of the only file."""
    root = root_folder(data["root"])
    if data["splits"]:
        return [split for split, file in data["splits"].items() if (root / file).is_file()]
    found = dict.fromkeys(one.split for one in read_expressions(root / data["captions"]))
    return [split for split in found if split] or [data["split"]]


class RefCoco(Listed):
    """Expressions of a split. An example has "image", the expression as its only caption, "box" and "size" where they
    are known, and "candidates", [] where nothing was detected.

    `report` counts `missing_pictures`, the expressions in them, and `empty_expressions`.

    Args:
        file: of the expressions; folder: of the pictures.
        max_missing: largest share of the split's pictures that may be missing on disk.
    Raises:
        UserError: a file is not there or malformed, there is no such split, or too many pictures are missing.
    """

    def __init__(self, *, file: Path, folder: Path, split: str, max_missing: float):
        every = list(read_expressions(file))
        of_split = [one for one in every if one.split in (split, "")]
        if not of_split:
            there = few(sorted({one.split for one in every})) or "none"
            raise UserError(f"{file.name} has no expression of the split {split!r}; its splits are {there}")
        dropped: Counter[str] = Counter()
        said = [one for one in of_split if usable_captions([one.text])]
        dropped["empty_expressions"] = len(of_split) - len(said)
        self._pictures = PictureFolder(folder, list(dict.fromkeys(one.picture for one in said)), max_missing, dropped)
        self._kept = [one for one in said if one.picture in self._pictures]
        dropped["expressions_of_missing_pictures"] = len(said) - len(self._kept)
        if not self._kept:
            raise UserError(f"{file}: no expression of the split {split!r} can be used ({dict(dropped)})")
        self._detected = _detections(file.parent / DETECTIONS)
        super().__init__(
            [one.id for one in self._kept],
            [usable_captions([one.text]) for one in self._kept],
            report={reason: count for reason, count in dropped.items() if count},
        )

    def __getitem__(self, index: int) -> dict[str, Any]:
        one = self._kept[index]
        known = {"box": one.box, "size": one.size} if one.box and one.size else {}
        return {**super().__getitem__(index), **known, "candidates": self._detected.get(one.number, [])}

    def image(self, index: int) -> bytes:
        """The bytes of the picture's file; b"" where it cannot be read."""
        return self._pictures.read(self._kept[index].picture)


def read_expressions(file: Path) -> Iterator[Expression]:
    """Every expression of a file, see the module.

    Raises:
        UserError: the file is not there, a pickle, or malformed; the message names the row.
    """
    if file.suffix in (".p", ".pkl") or _is_pickle(file):
        command = CONVERT.format(file.name, file.with_suffix(".json").name)
        raise UserError(
            f"{file.name} is a pickle, which can run anything and is not read; if you trust its origin, write JSON in "
            f'its folder by: python -c "{command}", and give that'
        )
    document = load_json(read_text(file, "file of expressions"), file.name)
    if not isinstance(document, list):
        raise UserError(f"{file.name}: a list is expected, not {type(document).__name__}; give refs or expressions")
    found = _of_refs(document, file) if document and _is_ref(document[0]) else _of_list(document, file.name)
    seen: set[str] = set()
    for where, one in found:
        if one.id in seen:
            raise UserError(f"{where}: {one.id} is there twice; remove one of them")
        seen.add(one.id)
        yield one


def _is_pickle(file: Path) -> bool:
    """Pickles of protocol 2 and later begin with this byte, which no text does."""
    try:
        with file.open("rb") as content:
            return content.read(1) == b"\x80"
    except OSError:
        return False


def _is_ref(entry: Json) -> bool:
    return isinstance(entry, dict) and "sentences" in entry


def _of_refs(refs: list[Json], file: Path) -> Iterator[tuple[str, Expression]]:
    instances = file.parent / INSTANCES
    document = load_json(read_text(instances, "file of boxes"), INSTANCES)
    pictures, boxes = {}, {}
    for where, entry in rows(field(document, "images", list, INSTANCES), f"{INSTANCES} images"):
        size = field(entry, "height", int, where), field(entry, "width", int, where)
        pictures[field(entry, "id", int, where)] = picture_name(field(entry, "file_name", str, where), where), size
    for where, entry in rows(field(document, "annotations", list, INSTANCES), f"{INSTANCES} annotations"):
        boxes[field(entry, "id", int, where)] = where, field(entry, "bbox", list, where)
    for where, ref in rows(refs, file.name):
        number, annotation = field(ref, "image_id", int, where), field(ref, "ann_id", int, where)
        for key, known, value in (("image_id", pictures, number), ("ann_id", boxes, annotation)):
            if value not in known:
                raise UserError(f"{where}: {INSTANCES} has no {key} {value}; take both files from one release")
        name, size = pictures[number]
        for sentence in field(ref, "sentences", list, where):
            yield (
                where,
                Expression(
                    id=f"{field(ref, 'ref_id', int, where)}/{field(sentence, 'sent_id', int, where)}",
                    picture=name,
                    number=number,
                    text=field(sentence, "sent", str, where),
                    split=field(ref, "split", str, where),
                    box=_box(boxes[annotation][1], boxes[annotation][0]),
                    size=size,
                ),
            )


def _of_list(entries: list[Json], file: str) -> Iterator[tuple[str, Expression]]:
    counts: Counter[str] = Counter()
    for where, entry in rows(entries, file):
        name = picture_name(field(entry, "image", str, where), where)
        texts = field(entry, "text", (str, list), where)
        thing = str(field(entry, "ref_id", (int, str), where)) if "ref_id" in entry else name
        box = _box(field(entry, "bbox", list, where), where) if "bbox" in entry else None
        sized = "height" in entry and "width" in entry
        size = (field(entry, "height", int, where), field(entry, "width", int, where)) if sized else None
        if box and not size:
            raise UserError(f"{where}: there is a bbox, and no width and height of the picture; give both")
        for text in [texts] if isinstance(texts, str) else texts:
            if not isinstance(text, str):
                raise UserError(f"{where}: text must be a text or a list of texts")
            split = field(entry, "split", str, where) if "split" in entry else ""
            yield where, Expression(f"{thing}/{counts[thing]}", name, _number(name), text, split, box, size)
            counts[thing] += 1


def _number(name: str) -> int | None:
    """A picture's number in COCO, whose names end with it: COCO_train2014_000000581857.jpg."""
    last = Path(name).stem.rpartition("_")[2]
    return int(last) if last.isdecimal() and last.isascii() else None


def _box(written: Json, where: str) -> Box:
    """A box written [x, y, width, height, ...]."""
    numbers = written[:4] if isinstance(written, list) else []
    if len(numbers) < 4 or not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers):
        raise UserError(f"{where}: the box {written!r} is not [x, y, width, height] in pixels")
    x, y, width, height = numbers
    if width <= 0 or height <= 0:
        raise UserError(f"{where}: the box {written!r} has no area")
    return x, y, x + width, y + height


def _detections(file: Path) -> dict[int | None, list[Box]]:
    """The boxes of each picture, by its number; of no file none."""
    if not file.is_file():
        return {}
    document, found = load_json(read_text(file, "file of detections"), file.name), {}
    if not isinstance(document, dict):
        raise UserError(f"{file.name}: an object of picture numbers is expected, not {type(document).__name__}")
    for key, boxes in document.items():
        if not key.isdecimal() or not isinstance(boxes, list):
            raise UserError(f"{file.name}: {key!r} is no number of a picture with a list of boxes")
        where = f"{file.name} {key}"
        found[int(key)] = [_box(box["box"] if isinstance(box, dict) and "box" in box else box, where) for box in boxes]
    return found
