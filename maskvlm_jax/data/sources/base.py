"""What a source of captioned pictures is, and how a new kind of source is written.

A kind of source is one file: in this folder, named in a config as `data.source=NAME`, or anywhere else, named as
`data.source=path/to/mine.py`. The file has a function

    def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source

that opens one split. `data` is `config.data` as plain values: of a mixture of sets, with the set's own. What it cannot
read is a `maskvlm_jax.runtime.errors.UserError` whose one line names the thing and what to do about it. A set that can
only lie in a local folder asks for `buckets.local_folder(root, ...)`; one that may lie in a bucket as well says which
of its files are read by `remote.local_root(root, ...)`.

The file may also have a function `existing_splits(data) -> Sequence[str]`: the splits that the set has on disk, for
`maskvlm_jax.prepare`. Without it they are those of `data.splits` whose files are there.

The simplest new kind is a `Listed`, of about fifteen lines: tests/data/sources/test_new_source.py has one.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np


class Source(Protocol):
    """Random access to captioned pictures.

    `source[i]` is {"id": str, "image": encoded bytes or HxWx3 uint8 RGB, "captions": [str, ...]} and whatever else is
    known of the example: labels, answers, boxes. `id(i)` and `captions(i)` answer without drawing or decoding the
    picture. A picture that cannot be read is b"", an example without a caption has []: the stream puts another in its
    place. Where examples lack a picture or a text by their nature, "absent" lists the keys of what is lacking, "image",
    "captions" or another, and any picture or text stands there: the mean colour and no word are read, as modality
    dropout leaves them.

    `facts(i)` is optional: `source[i]` without its picture, which is not read for it; see `facts_of`.

    A source is pickled into worker processes and read by several threads at once.

    Attributes:
        report: counts of what was left out when the source was opened, by reason, such as {"missing_pictures": 3}.
        fingerprint: sha256 in hex that differs where examples, their order or captions do: a run goes on only with the
            data that it began with.
        id_reads_record: optional; true where `id(i)` costs the reading of a whole record.
        classes: optional; names of the classes of pictures, in the order of the numbers that examples have as "label".
    """

    report: dict[str, int]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    def id(self, index: int) -> str: ...
    def captions(self, index: int) -> list[str]: ...

    @property
    def fingerprint(self) -> str: ...


def facts_of(source: Source, index: int) -> dict[str, Any]:
    """What a source knows of an example, but for the picture, which is read only where the source has no `facts`."""
    known = source.facts(index) if hasattr(source, "facts") else source[index]
    return {key: value for key, value in known.items() if key != "image"}


class Listed:
    """A source that knows its examples when it is opened, all but the pictures. A subclass says how one is read.

    Args:
        ids: a name for each example, different from all others.
        captions: the captions of each.
        report: see `Source`.
        others: what else is known of each example, by key: `label=[3, 1, ...]`.
    """

    def __init__(
        self,
        ids: Sequence[str],
        captions: Sequence[list[str]],
        *,
        report: dict[str, int] | None = None,
        **others: Sequence[Any],
    ):
        self._ids, self._captions, self._others = ids, captions, others
        self.report: dict[str, int] = report or {}

    def image(self, index: int) -> bytes | np.ndarray:
        """The picture of an example: encoded, or (height, width, 3) uint8 RGB; b"" where it cannot be read."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.facts(index), "image": self.image(index)}

    def facts(self, index: int) -> dict[str, Any]:
        """All that is known of the example; the picture is not read."""
        others = {key: values[index] for key, values in self._others.items()}
        return {"id": self.id(index), "captions": self.captions(index), **others}

    def id(self, index: int) -> str:
        """The example's name; the picture is not read."""
        return self._ids[index]

    def captions(self, index: int) -> list[str]:
        """The example's captions; the picture is not read."""
        return list(self._captions[index])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that is known of the examples, in order; the pictures' bytes are not part of it."""
        digest = hashlib.sha256()
        for index, example in enumerate(zip(self._ids, self._captions, strict=True)):
            told = [*example, *self._told(index)]
            digest.update(json.dumps(told, default=lambda one: np.asarray(one).tolist()).encode() + b"\n")
        return digest.hexdigest()

    def _told(self, index: int) -> list[Any]:
        """What the fingerprint has of an example beside its id and captions."""
        return [{key: values[index] for key, values in self._others.items()}] if self._others else []
