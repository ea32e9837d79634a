"""Data source `snli_ve`: sentences that a picture of Flickr30k entails, contradicts or leaves open (Xie et al. 2019).

Reads the set as it was released (arXiv 1901.06706), a JSON object a line, and ALBEF's lists (arXiv 2107.07651). The
sentence is the example's caption, "label" one of `LABELS`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from maskvlm_jax.data.sources.annotations import Json, field, picture_name
from maskvlm_jax.data.sources.base import Source
from maskvlm_jax.data.sources.picture_rows import PictureRows, Row, json_rows, split_file
from maskvlm_jax.runtime.errors import UserError

LABELS = ("contradiction", "neutral", "entailment")  # in the order of ALBEF's numbers
FILES = {split: f"snli_ve_{name}.jsonl" for split, name in (("train", "train"), ("val", "dev"), ("test", "test"))}
NO_LABEL = "-"  # people did not agree
# The name of the picture, as releases of the set spell its key.
_PICTURE_KEYS = ("Flickr30K_ID", "Flickr30kID", "Flikr30kID")


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """The split `split`: the file `data.splits` names, with pictures of `data.images`.

    Raises:
        UserError: as `PictureRows`, or a row is malformed.
    """
    path, dropped = split_file(data, split, "snli_ve"), Counter()
    return PictureRows(data, path, _read(path, dropped), dropped)


def _read(path: Path, dropped: Counter[str]) -> Iterator[Row]:
    for where, entry in json_rows(path):
        released = isinstance(entry, dict) and "gold_label" in entry
        label = field(entry, "gold_label" if released else "label", str, where)
        if label == NO_LABEL:
            dropped["rows_without_label"] += 1
            continue
        if label not in LABELS:
            raise UserError(f"{where}: the label {label!r} is none of {', '.join(LABELS)}, or {NO_LABEL}; correct it")
        name = _picture_of(entry, where) if released else str(field(entry, "image", (str, int), where))
        sentence = field(entry, "sentence2" if released else "sentence", str, where)
        number = field(entry, "pairID", str, where) if released else ""
        yield Row(where, number, (_file_of(name, where),), sentence, {"label": label})


def _picture_of(entry: Json, where: str) -> str:
    """The picture's name in Flickr30k; without a key of its own it begins the pair's name: 123.jpg#2r1n."""
    key = next((key for key in _PICTURE_KEYS if key in entry), None)
    if key is not None:
        return str(field(entry, key, (str, int), where))
    name, mark, _ = field(entry, "pairID", str, where).partition("#")
    if not mark:
        raise UserError(f"{where}: no key tells the picture; give {_PICTURE_KEYS[0]}")
    return name


def _file_of(name: str, where: str) -> str:
    return picture_name(name if name.endswith(".jpg") else f"{name}.jpg", where)
