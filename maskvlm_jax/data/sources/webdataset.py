"""Data source `webdataset`: tar shards of KEY.jpg, KEY.txt and KEY.json, as img2dataset writes them.

A shard is read through once. Where its pictures and captions stand in it is kept beside it in NAME.tar.index, so that
later openings read only that, and an example costs one or two reads at a known place.
"""

import bisect
import hashlib
import itertools
import json
import operator
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from maskvlm_jax.data.sources import remote
from maskvlm_jax.data.sources.base import Source
from maskvlm_jax.data.sources.shards import find_shards, pattern_of
from maskvlm_jax.data.sources.tar_index import Shard, open_shard, opened, written_captions
from maskvlm_jax.data.sources.written_text import usable_captions
from maskvlm_jax.runtime.errors import UserError

_OPENING_THREADS = 8  # a network file system answers several at a time


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """The shards `data.splits[split]` in the folder `data.root`, on disk or in a bucket."""
    shards = pattern_of(data, split)
    root = remote.local_root(data["root"], "webdataset", [shards])
    return WebDataset(root=root, shards=shards, caption_key=data["caption_key"])


class WebDataset:
    """Samples of tar shards; an example's id is SHARD/KEY, with the shard's name relative to the root.

    A sample is the members of one shard that share a key: the name up to its last dot, or up to the first dot of its
    last part where nothing else is the same up to the last one. The first picture of a key counts. A shard is not
    extracted, and no name in it is ever a path on disk.

    `report` counts what was left out: `unsafe_members` (links, devices, sparse files, names that are absolute, have ..
    or are not UTF-8), `truncated_shards` (what is whole in them is kept), `repeated_keys` (the first counts),
    `samples_without_pictures`, `unusable_captions` (empty or not UTF-8) and `pictures_without_captions`.
    """

    def __init__(self, *, root: str, shards: str, caption_key: str = ""):
        """Reads the shards' indexes, and first makes those that are missing or out of date.

        Args:
          root: folder that `shards` is relative to.
          shards: glob such as "train/*.tar", or names such as "{00000..00099}.tar".
          caption_key: "txt", or a key of the JSON that holds a text or a list of them; "" takes the text file, and the
            JSON's `caption` where there is none.

        Raises:
          UserError: no shard, one that is missing or not a tar file, or no sample with a picture and a caption.
        """
        names = find_shards(root, shards, ".tar")
        self._root, self._field = Path(root).expanduser(), caption_key or "caption"
        with ThreadPoolExecutor(_OPENING_THREADS) as pool:
            self._shards = list(pool.map(partial(open_shard, self._root, caption_key=caption_key), names))
        self._starts = [0, *itertools.accumulate(len(shard.samples) for shard in self._shards)]
        self.report: dict[str, int] = dict(sum((Counter(shard.report) for shard in self._shards), Counter()))
        if not len(self):
            raise UserError(
                f"{self._root / shards}: no sample has a picture and a caption ({self.report}); "
                "check --config.data.caption_key"
            )

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns id, encoded picture and captions; b"" stands for a picture that cannot be read any more."""
        shard, place = self._place(index)
        sample = shard.samples[place]
        image = self._read(shard, sample["image"], sample["image_size"])
        return {"id": self.id(index), "image": image, "captions": self.captions(index)}

    def id(self, index: int) -> str:
        """Returns SHARD/KEY."""
        shard, place = self._place(index)
        start = shard.samples["key_end"][place - 1] if place else 0
        key = shard.keys[start : shard.samples["key_end"][place]].decode(errors="replace")
        return f"{shard.name.removesuffix('.tar')}/{key}"

    def captions(self, index: int) -> list[str]:
        """Returns the captions, read from the shard without the picture."""
        shard, place = self._place(index)
        sample = shard.samples[place]
        text = self._read(shard, sample["caption"], sample["caption_size"])
        return usable_captions(written_captions(text, self._field if sample["is_json"] else ""))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the ids and captions in order; the pictures' bytes are not part of it."""
        digest = hashlib.sha256()
        for shard in self._shards:
            digest.update(json.dumps([shard.name, shard.digest]).encode() + b"\n")
        return digest.hexdigest()

    def _place(self, index: int) -> tuple[Shard, int]:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"webdataset: index {index} is not among the {len(self)} samples")
        number = bisect.bisect_right(self._starts, index) - 1
        return self._shards[number], index - self._starts[number]

    def _read(self, shard: Shard, start: int, size: int) -> bytes:
        """Returns b"" where the shard cannot be read, or has become shorter."""
        try:
            data = opened(self._root / shard.name, shard.stamp).read(int(start), int(size))
        except OSError:
            return b""
        return data if len(data) == size else b""
