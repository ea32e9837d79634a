"""Data source `files`: a folder of pictures with a caption file beside it."""

import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskvlm_jax.data.sources import remote
from maskvlm_jax.data.sources.base import Listed, Source
from maskvlm_jax.data.sources.caption_files import read_captions, read_split_list
from maskvlm_jax.data.sources.written_text import usable_captions
from maskvlm_jax.runtime import buckets
from maskvlm_jax.runtime.errors import UserError, few

_SPLIT = "{split}"  # in a name


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """The split `split` of the folder `data.root`, which must be on disk."""
    buckets.local_folder(data["root"], "a set of kind files")
    return Files(
        root=data["root"],
        images=data["images"],
        captions=data["captions"],
        split=split,
        splits=dict(data["splits"]) or None,
        max_missing=data["max_missing"],
        image_key=data["image_key"],
        caption_key=data["caption_key"],
    )


def existing_splits(data: Mapping[str, Any]) -> Sequence[str]:
    """Those of the split lists, or of the files by split, that are there; where there are none those of the caption
    file."""
    root = buckets.local_folder(data["root"], "a set of kind files")
    if _SPLIT in data["images"] + data["captions"]:
        names = dict(data["splits"]) or {data["split"]: data["split"]}
        files = (data["images"], data["captions"])
        there = [
            split
            for split, name in names.items()
            if all((root / file.replace(_SPLIT, name)).exists() for file in files)
        ]
        return there or (data["split"],)
    if data["splits"]:
        return remote.splits_there(data)
    keys = {"image_key": data["image_key"], "caption_key": data["caption_key"]}
    return tuple(read_captions(root / data["captions"], **keys).splits) or (data["split"],)


class Files(Listed):
    """Pictures with captions on disk; see `read_captions` for the formats of the caption file.

    The order is that of the split list, or of the caption file where there is no list. An example's id is its
    picture's name relative to the picture folder. Of the captions only the white space is changed: it is collapsed.

    `report` counts what was left out of the split: `repeated_pictures` (names after the first in a list),
    `missing_pictures` (not on disk), `empty_captions` and `pictures_without_captions`.
    """

    def __init__(
        self,
        *,
        root: str,
        images: str,
        captions: str,
        split: str,
        splits: dict[str, str] | None,
        max_missing: float = 0.05,
        image_key: str = "",
        caption_key: str = "",
    ):
        """Reads the captions and lists the picture folders; no picture is opened.

        Args:
          root: folder that `images`, `captions` and the split lists are relative to.
          images: picture folder; "" is `root` itself.
          captions: caption file. Where `{split}` is in its name or in `images`, each split has a file of its own, and
            `splits` says what stands there for a split, or it is the split's name.
          split: name of the split to serve; any name will do where neither `splits` nor the caption file has splits.
          splits: split name -> list file, one picture name a line; None takes the splits of the caption file, or all
            its pictures as the one split.
          max_missing: largest share of the split's pictures that may be missing on disk; the missing ones are left out.
          image_key, caption_key: columns of a caption file with more of them than two, see `read_captions`.

        Raises:
          UserError: a path does not exist, a file is malformed, there is no such split, more than `max_missing` of its
            pictures are missing, or none is left.
        """
        root_path = root_folder(root)
        if _SPLIT in images + captions:
            name = split if splits is None else _lookup(splits, split, "--config.data.splits")
            images, captions, splits = images.replace(_SPLIT, name), captions.replace(_SPLIT, name), None
        folder = picture_folder(root_path, images)
        table = read_captions(root_path / captions, image_key=image_key, caption_key=caption_key)
        if splits is not None:
            flag = f"--config.data.root and --config.data.splits.{split}"
            names = read_split_list(root_path / _lookup(splits, split, "--config.data.splits"), flag)
        elif table.splits:
            names = _lookup(table.splits, split, captions)
        else:
            names = list(table.captions)
        unique = list(dict.fromkeys(names))
        dropped = Counter({"repeated_pictures": len(names) - len(unique), **table.left_out})
        self._pictures = PictureFolder(folder, unique, max_missing, dropped)
        names, usable = _clean_captions(self._pictures.names, table.captions, dropped)
        super().__init__(names, usable, report={reason: count for reason, count in dropped.items() if count})
        if not names:
            raise UserError(f"{root_path / captions}: no picture of split {split!r} has a caption ({self.report})")

    def image(self, index: int) -> bytes:
        """The bytes of the picture's file; b"" where it cannot be read."""
        return self._pictures.read(self.id(index))


class PictureFolder:
    """Pictures of a folder by their names, those that are there.

    Args:
        folder: that names are relative to.
        names: all different.
        max_missing: largest share of them that may be missing.
        dropped: gets the count `missing_pictures`.
    Raises:
        UserError: more are missing.
    """

    def __init__(self, folder: Path, names: list[str], max_missing: float, dropped: Counter[str]):
        self._folder, self._on_disk = folder, _drop_missing(names, folder, max_missing, dropped)

    @property
    def names(self) -> list[str]:
        """Of the pictures that are there, in their order."""
        return list(self._on_disk)

    def __contains__(self, name: str) -> bool:
        return name in self._on_disk

    def read(self, name: str) -> bytes:
        """The bytes of a picture's file; b"" where it cannot be read."""
        try:
            return (self._folder / self._on_disk[name]).read_bytes()
        except OSError:
            return b""


def picture_folder(root: Path, images: str) -> Path:
    """The folder `images` of a root, "" = the root itself; a UserError where it is none."""
    if not (folder := root / images).is_dir():
        raise UserError(f"{folder}: no such picture folder; set --config.data.images or --config.data.root")
    return folder


def root_folder(root: str) -> Path:
    """The folder of a set; a UserError where it is none."""
    path = Path(root).expanduser()
    if not root or not path.is_dir():
        raise UserError(f"data root {root!r} is not a folder; set --config.data.root=/path/to/the/data")
    return path


def _lookup(splits: dict[str, Any], split: str, where: str) -> Any:
    if split not in splits:
        raise UserError(f"there is no split {split!r} in {where}; choose from {few(sorted(splits))}")
    return splits[split]


def _drop_missing(names: list[str], folder: Path, max_missing: float, dropped: Counter[str]) -> dict[str, str]:
    """The names that are on disk -> how they are written there: some systems take accents apart.

    More than a share of `max_missing` that are not there is a UserError.
    """
    # One listing a folder: on a network file system a stat for each of a hundred thousand pictures takes minutes.
    listings: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {"": ("", *_list_folder(folder))}

    def listing(subfolder: str) -> tuple[str, dict[str, str], dict[str, str]]:
        """How a subfolder is written on disk, its folders and its files."""
        if subfolder not in listings:
            parent, last = posixpath.split(subfolder)
            above, folders, _ = listing(parent)
            path = posixpath.join(above, folders.get(last, last))
            listings[subfolder] = (path, *_list_folder(folder / path))
        return listings[subfolder]

    present: dict[str, str] = {}
    for name in names:
        subfolder, last = posixpath.split(name)
        path, _, there = listing(subfolder)
        if last in there:
            present[name] = posixpath.join(path, there[last])
    missing = [name for name in names if name not in present]
    if len(missing) > max_missing * len(names):
        raise UserError(
            f"{len(missing)} of {len(names)} pictures of the split are not in {folder} (first: {missing[0]}); "
            "set --config.data.root or raise --config.data.max_missing"
        )
    dropped["missing_pictures"] = len(missing)
    return present


def _is_composed(name: str) -> bool:
    return unicodedata.is_normalized("NFC", name)


def _list_folder(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Folders and files: name with composed accents -> name as it is."""
    # The first step of a walk is this folder's own listing; a folder that cannot be listed has no steps.
    _, folders, names = next(os.walk(folder), ("", [], []))
    # Of two names that differ only so, the composed one counts, as in the list.
    return tuple(
        {unicodedata.normalize("NFC", name): name for name in sorted(found, key=_is_composed)}
        for found in (folders, names)
    )


def _clean_captions(
    names: list[str], written: dict[str, list[str]], dropped: Counter[str]
) -> tuple[list[str], list[list[str]]]:
    """Names and captions of the pictures that have a caption left once white space is collapsed."""
    kept, usable = [], []
    for name in names:
        there = written.get(name, [])
        captions = usable_captions(there)
        dropped["empty_captions"] += len(there) - len(captions)
        if captions:
            kept.append(name)
            usable.append(captions)
        else:
            dropped["pictures_without_captions"] += 1
    return kept, usable
