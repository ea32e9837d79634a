"""Data source `files`: a folder of pictures with a caption file beside it."""

import hashlib
import json
import os
import posixpath
import unicodedata
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

from maskvlm_jax.data.caption_files import read_captions, read_split_list, usable_captions
from maskvlm_jax.errors import UserError, few


class Files:
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
    ):
        """Reads the captions and lists the picture folders; no picture is opened.

        Args:
          root: folder that `images`, `captions` and the split lists are relative to.
          images: picture folder; "" is `root` itself.
          captions: caption file.
          split: name of the split to serve; any name will do where neither `splits` nor the caption file has splits.
          splits: split name -> list file, one picture name a line; None takes the splits of the caption file, or all
            its pictures as the one split.
          max_missing: largest share of the split's pictures that may be missing on disk; the missing ones are left out.

        Raises:
          UserError: a path does not exist, a file is malformed, there is no such split, more than `max_missing` of its
            pictures are missing, or none is left.
        """
        root_path = _root_folder(root)
        self._folder = root_path / images
        if not self._folder.is_dir():
            raise UserError(f"{self._folder}: no such picture folder; set --config.data.images or --config.data.root")
        table = read_captions(root_path / captions)
        if splits is not None:
            flag = f"--config.data.root and --config.data.splits.{split}"
            names = read_split_list(root_path / _lookup(splits, split, "--config.data.splits"), flag)
        elif table.splits:
            names = _lookup(table.splits, split, captions)
        else:
            names = list(table.captions)
        unique = list(dict.fromkeys(names))
        dropped = Counter(repeated_pictures=len(names) - len(unique))
        self._on_disk = _drop_missing(unique, self._folder, max_missing, dropped)
        self._examples = _clean_captions(list(self._on_disk), table.captions, dropped)
        self.report: dict[str, int] = {reason: count for reason, count in dropped.items() if count}
        if not self._examples:
            raise UserError(f"{root_path / captions}: no picture of split {split!r} has a caption ({self.report})")

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns id, encoded picture and captions; b"" stands for a file that cannot be read: no decoder takes it."""
        name, captions = self._examples[index]
        try:
            image = (self._folder / self._on_disk[name]).read_bytes()
        except OSError:
            image = b""
        return {"id": name, "image": image, "captions": list(captions)}

    def id(self, index: int) -> str:
        """Returns the picture's name relative to the picture folder."""
        return self._examples[index][0]

    def captions(self, index: int) -> list[str]:
        """Returns the picture's captions without reading the picture."""
        return list(self._examples[index][1])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the ids and captions in order; the pictures' bytes are not part of it."""
        digest = hashlib.sha256()
        for example in self._examples:
            digest.update(json.dumps(example).encode() + b"\n")
        return digest.hexdigest()


def _root_folder(root: str) -> Path:
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
) -> list[tuple[str, list[str]]]:
    """Returns (name, captions) of the pictures that have a caption left once white space is collapsed."""
    examples = []
    for name in names:
        there = written.get(name, [])
        captions = usable_captions(there)
        dropped["empty_captions"] += len(there) - len(captions)
        if captions:
            examples.append((name, captions))
        else:
            dropped["pictures_without_captions"] += 1
    return examples
