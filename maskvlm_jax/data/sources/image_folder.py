"""Data source `image_folder`: pictures whose class is the name of their folder, or stands in a table beside them.

    ROOT/train/red panda/001.jpg      or      ROOT/train.csv    image,label
    ROOT/val/red panda/002.jpg                                  red/001.jpg,red panda

Classes are numbered in the order of their names, those of the training split first, then those that only the split has,
so that splits agree. An example has its number, "label", its name, "class", and the name as its only caption.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskvlm_jax.data.sources.annotations import csv_rows, picture_name, read_text
from maskvlm_jax.data.sources.base import Listed, Source
from maskvlm_jax.data.sources.files import PictureFolder, picture_folder, root_folder
from maskvlm_jax.data.sources.written_text import usable_captions
from maskvlm_jax.runtime import buckets
from maskvlm_jax.runtime.errors import UserError

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2", ".avif")
_LABELS = ("label", "class")  # of a table's second column


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """The split `split` of the folder `data.root`: the table `data.splits[split]`, the folder of that name, or without
    it the folder SPLIT."""
    return ImageFolder(
        root=data["root"],
        images=data["images"],
        split=data["splits"].get(split, split),
        train=data["splits"].get(data["split"], data["split"]),
        max_missing=data["max_missing"],
    )


def existing_splits(data: Mapping[str, Any]) -> Sequence[str]:
    """Those of `data.splits`, and else of the folders of usual names, that are there."""
    buckets.local_folder(data["root"], "a set of kind image_folder")
    named = data["splits"] or {split: split for split in dict.fromkeys((data["split"], "train", "val", "test"))}
    there = [split for split, name in named.items() if (root_folder(data["root"]) / name).exists()]
    return there or (data["split"],)


class ImageFolder(Listed):
    """Pictures and their classes; an example's id is its picture's name relative to the root or to `images`.

    `report` counts `missing_pictures`, which a table names and which are not there, and `other_files`, which have no
    ending of a picture.

    Attributes:
        classes: names, in the order of their numbers.
    """

    def __init__(self, *, root: str, images: str = "", split: str, train: str = "", max_missing: float = 0.05):
        """Lists the folders; no picture is opened.

        Args:
          root: folder that `split` and `images` are relative to.
          images: folder that a table's names are relative to; "" = the root.
          split: a folder with a folder for each class, or a table in CSV with the columns image and label.
          train: likewise of the training split, for the classes that it has; where it is not there, `split` alone.
          max_missing: largest share of a table's pictures that may be missing.

        Raises:
          UserError: there is no such folder or table, a row is malformed, or no picture is left.
        """
        buckets.local_folder(root, "a set of kind image_folder")
        folder, dropped = root_folder(root), Counter()
        class_of = _classes_of(folder, split, dropped)
        trained = (
            _classes_of(folder, train, Counter()) if train != split and train and (folder / train).exists() else {}
        )
        known = sorted({*trained.values()})
        self.classes = (*known, *sorted({*class_of.values()} - set(known)))
        below = picture_folder(folder, images if split.lower().endswith(".csv") else "")
        self._pictures = PictureFolder(below, list(class_of), max_missing, dropped)
        names, number = self._pictures.names, {name: number for number, name in enumerate(self.classes)}
        if not names:
            raise UserError(f"{folder / split}: there is no picture in a folder of its class; check --config.data.root")
        told = [class_of[name] for name in names]
        others = {"label": [number[one] for one in told], "class": told}
        report = {reason: count for reason, count in dropped.items() if count}
        super().__init__(names, [[one] for one in told], report=report, **others)

    def image(self, index: int) -> bytes:
        """The bytes of the picture's file; b"" where it cannot be read."""
        return self._pictures.read(self.id(index))


def _classes_of(root: Path, split: str, dropped: Counter[str]) -> dict[str, str]:
    """Picture -> class, of a folder or a table."""
    path = root / split
    if path.is_dir():
        return _of_folder(root, split, dropped)
    if path.is_file() and split.lower().endswith(".csv"):
        return _of_table(path)
    raise UserError(
        f"{path}: there is no such folder of classes, and no table; set --config.data.root, or --config.data.splits to "
        "the folder or CSV file of each split"
    )


def _of_folder(root: Path, split: str, dropped: Counter[str]) -> dict[str, str]:
    """Sorted by name; pictures may lie in folders below that of their class, which may be a link to a folder."""
    found: dict[str, str] = {}
    for one in sorted(entry.name for entry in (root / split).iterdir() if entry.is_dir() and entry.name[0] != "."):
        caption = _class_name(one, f"{split}/{one}")
        for above, folders, files in os.walk(root / split / one):
            folders.sort()
            for name in sorted(files):
                if name.lower().endswith(_ENDINGS) and name[0] != ".":
                    relative = Path(above, name).relative_to(root).as_posix()
                    found[picture_name(relative, relative)] = caption
                else:
                    dropped["other_files"] += 1
    return found


def _of_table(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    table = csv_rows(read_text(path, "table of classes"), path.name)
    header = next(table)[1]
    if len(header) != 2 or header[0] != "image" or header[1] not in _LABELS:
        raise UserError(f"{path.name} row 1: the header is {','.join(header)[:80]!r}; it must be image,label")
    for where, row in table:
        name = picture_name(row[0], where)
        if name in found:
            raise UserError(f"{where}: picture {name!r} is there already; remove one of its rows")
        found[name] = _class_name(row[1], where)
    return found


def _class_name(written: str, where: str) -> str:
    """The name of a class, with white space collapsed and its accents composed, as in every list of names."""
    if not (found := usable_captions([written])):
        raise UserError(f"{where}: the class is empty or no text; name it")
    return unicodedata.normalize("NFC", found[0])
