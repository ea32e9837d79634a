"""Opens the sources that a config names: one set, or a mixture of several."""

import bisect
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Protocol

from maskvlm_jax import buckets
from maskvlm_jax.data import captions as cleaning
from maskvlm_jax.data import remote
from maskvlm_jax.errors import UserError


class Source(Protocol):
    """Random access to captioned pictures.

    `source[i]` is {"id": str, "image": encoded bytes or HxWx3 uint8 RGB, "captions": [str, ...]} and whatever ground
    truth there is. `id(i)` and `captions(i)` answer without drawing or decoding the picture. A picture that cannot be
    read is b"", an example without a caption has []: the stream puts another in its place. `report` counts what was
    skipped when the source was opened; `fingerprint` is a sha256 of which examples and captions it holds.

    A source is pickled into worker processes and read by several threads at once.
    """

    report: dict[str, int]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    def id(self, index: int) -> str: ...
    def captions(self, index: int) -> list[str]: ...

    @property
    def fingerprint(self) -> str: ...


SOURCES = ("scenes", "files", "array_record", "tfds", "webdataset", "parquet")


def open_source(data: Mapping[str, Any], split: str, image_size: int) -> Source:
    """A split of the set that `config.data` names; of a mixture, of the set `data.scored`.

    Raises:
        UserError: an unknown kind of source, or whatever the source finds wrong.
    """
    if data["mixture"]:
        parts = dict(_parts(data))
        if data["scored"] not in parts:
            raise UserError(f"data.scored is {data['scored']!r}; choose among {', '.join(parts)}")
        with _of_a_mixture(data["scored"]):
            return open_source(parts[data["scored"]], split, image_size)
    return cleaning.Cleaned(_open(data, split, image_size), data["clean"])


@contextmanager
def _of_a_mixture(name: str) -> Iterator[None]:
    """Errors name the flags of a set of a mixture, where it would name those of a set alone."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}".replace("--config.data.", f"--config.data.mixture.{name}.")) from error


def open_training_source(data: Mapping[str, Any], image_size: int) -> Source:
    """What `config.data` trains on: its split `data.split`, or a `Mixture` of its sets, each with its own."""
    if not data["mixture"]:
        return open_source(data, data["split"], image_size)
    parts = []
    for name, part in _parts(data):
        with _of_a_mixture(name):
            source = open_source(part, part["split"], image_size)
        parts.append((name, source, part["weight"], part["limit"]))
    return Mixture(parts)


MOST_COMPARED = 300_000


def count_trained_on(
    trained: Source, scored: Mapping[str, tuple[Source, int]], *, part: str = "", limit: int = 0
) -> dict[str, int]:
    """How many of the scored examples of each split training sees too, by their ids.

    Splits are left out where there are too many ids to look at, or each costs the reading of a record.

    Args:
        trained: as `open_training_source` gives it.
        scored: split -> another split of the same set, and how many of its first examples are scored; 0 = all.
        part: of a mixture, the set that is scored: the others name the same picture otherwise.
        limit: only the first examples are trained on; 0 = all. A mixture has its own.
    """
    if isinstance(trained, Mixture):
        trained, limit = trained.part(part)
    seen = min(limit or len(trained), len(trained))
    lengths = {split: min(most or len(source), len(source)) for split, (source, most) in scored.items()}
    same = {split: min(seen, lengths[split]) for split in scored if scored[split][0].fingerprint == trained.fingerprint}
    if seen + sum(lengths.values()) > MOST_COMPARED or getattr(trained, "id_reads_record", False):
        return same
    wanted = {split: {scored[split][0].id(i) for i in range(lengths[split])} for split in scored if split not in same}
    ids = {trained.id(i) for i in range(seen)} if wanted else set()
    return same | {split: len(ids & names) for split, names in wanted.items()}


def _parts(data: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(name, `config.data` with that set's own values) of each set of a mixture, by name."""
    return [(name, {**data, **part, "mixture": {}}) for name, part in sorted(data["mixture"].items())]


# Files that a source reads, as globs relative to the root: of these kinds of sets some may be in a bucket.
_FILES: dict[str, Callable[[Mapping[str, Any], str], list[str]]] = {
    "array_record": lambda data, split: ["*/manifest.json", f"{split}/*.array_record"],
    "webdataset": lambda data, split: [_shards(data, split)],
    "parquet": lambda data, split: [_shards(data, split)],
}


def _open(data: Mapping[str, Any], split: str, image_size: int) -> Source:
    kind, root = data["source"], data["root"]
    if kind in _FILES and buckets.is_remote(root):
        root = remote.local_root(root, _FILES[kind](data, split))
    elif kind != "scenes":
        buckets.local_folder(root, f"a set of kind {kind}")
    if kind == "scenes":
        from maskvlm_jax.data.scenes import Scenes

        return Scenes(split=split, image_size=image_size, seed=data["scenes_seed"])
    if kind == "files":
        from maskvlm_jax.data.files import Files

        return Files(
            root=data["root"],
            images=data["images"],
            captions=data["captions"],
            split=split,
            splits=dict(data["splits"]) or None,
            max_missing=data["max_missing"],
        )
    if kind == "array_record":
        from maskvlm_jax.data.records import ArrayRecords

        return ArrayRecords(root=root, split=split)
    keys = {"caption_key": data["caption_key"]}
    if kind == "tfds":
        from maskvlm_jax.data.tfds import Tfds

        return _told(data, Tfds(root=data["root"], split=split, image_key=data["image_key"], **keys))
    if kind == "webdataset":
        from maskvlm_jax.data.webdataset import WebDataset

        return WebDataset(root=root, shards=_shards(data, split), **keys)
    if kind == "parquet":
        from maskvlm_jax.data.parquet import Parquet

        return _told(data, Parquet(root=root, shards=_shards(data, split), image_key=data["image_key"], **keys))
    raise UserError(f"there is no data source {kind!r}; choose among {', '.join(SOURCES)}")


_already_told: set[tuple[str, ...]] = set()


def _told(data: Mapping[str, Any], source: Any) -> Source:
    """The source, after a line, once a set, that says which of its columns are read."""
    found = (data["root"], *source.columns)
    if found not in _already_told:
        _already_told.add(found)
        print("{}: pictures are read from {!r}, captions from {!r}".format(*found), flush=True)
    return source


def _shards(data: Mapping[str, Any], split: str) -> str:
    """The pattern of a split's shards, `data.splits[split]`."""
    if split not in data["splits"]:
        there = ", ".join(sorted(data["splits"])) or "none"
        wanted = {**data["splits"], split: "PATTERN"}
        raise UserError(
            f"data.splits has no shards of split {split!r}, only {there}; give their pattern, such as "
            f'--config.data.splits="{wanted}"'
        )
    return data["splits"][split]


class Mixture:
    """Several sources one behind the other; how often the stream draws from each is given by weights.

    Args:
        parts: (name, source, weight, limit) of each: only its first `limit` examples are drawn, 0 = all; all weights 0
            draw every example equally often.

    Raises:
        UserError: a negative weight, or some weights of 0 and some not.
    """

    def __init__(self, parts: list[tuple[str, Source, float, int]]):
        self._names, self._sources, weights, limits = zip(*parts, strict=True)
        lengths = [len(source) for source in self._sources]
        self._starts = [0, *itertools.accumulate(lengths)]
        self._limits = limits
        self.sizes = [min(length, limit or length) for length, limit in zip(lengths, limits, strict=True)]
        if any(weight < 0 for weight in weights) or (any(weights) and not all(weights)):
            told = ", ".join(f"{name} {weight}" for name, weight in zip(self._names, weights, strict=True))
            raise UserError(
                f"the weights of a mixture are {told}; give each a positive one, or 0 to all to draw by their sizes"
            )
        self.weights = list(weights) if any(weights) else [float(size) for size in self.sizes]
        self.report = {
            f"{name}: {reason}": count
            for name, source in zip(self._names, self._sources, strict=True)
            for reason, count in source.report.items()
        }

    @property
    def ranges(self) -> list[range]:
        """The example numbers that each part's draws come from."""
        return [range(start, start + size) for start, size in zip(self._starts, self.sizes, strict=False)]

    def first(self, count: int) -> list[int]:
        """About `count` example numbers, the first of each part in proportion to the parts' sizes."""
        share = min(1.0, count / sum(self.sizes))
        return [index for part in self.ranges for index in part[: math.ceil(share * len(part))]]

    def _at(self, index: int) -> tuple[str, Source, int]:
        part = bisect.bisect_right(self._starts, index) - 1
        return self._names[part], self._sources[part], index - self._starts[part]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, source, local = self._at(index)
        example = source[local]
        return example | {"id": f"{name}/{example['id']}"}

    def part(self, name: str) -> tuple[Source, int]:
        """A set by its name, and how many of its first examples are drawn, 0 = all."""
        place = self._names.index(name)
        return self._sources[place], self._limits[place]

    def id(self, index: int) -> str:
        name, source, local = self._at(index)
        return f"{name}/{source.id(local)}"

    def captions(self, index: int) -> list[str]:
        _, source, local = self._at(index)
        return source.captions(local)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the parts' names and fingerprints."""
        parts = zip(self._names, self._sources, strict=True)
        return hashlib.sha256("".join(f"{name} {source.fingerprint}\n" for name, source in parts).encode()).hexdigest()
