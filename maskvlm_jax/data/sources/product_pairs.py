"""Data source `product_pairs`: pairs of products, each a picture and a text, that are the same product or not.

The task of MLIM (arXiv 2109.12178), whose own set is not public. A split is a CSV file with the header
`image1,text1,image2,text2,label`, and `id` where rows have one; label is 1 for the same product, 0 for another. A
picture or a text may be empty, not both of one product. An example has "image" and one caption of the first product,
"image2" and "text2" of the second, "label", 0 or 1, and "absent": the keys of what is empty.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maskvlm_jax.data import batch as batches
from maskvlm_jax.data.sources.annotations import csv_rows, picture_name, read_text
from maskvlm_jax.data.sources.base import Source
from maskvlm_jax.data.sources.cleaned import clean
from maskvlm_jax.data.sources.picture_rows import PictureRows, Row, split_file
from maskvlm_jax.data.sources.written_text import usable_captions
from maskvlm_jax.runtime.errors import UserError

FILES = {split: f"{split}.csv" for split in ("train", "val", "test")}
COLUMNS = ("image1", "text1", "image2", "text2", "label")
NO_TEXT = "(no text)"  # stands where a text is absent, and is not read
NO_PICTURE = batches.without_picture(np.zeros((32, 32, 3), np.uint8))


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """The split `split`: the file `data.splits` names, with pictures of `data.images`.

    Raises:
        UserError: as `PictureRows`, or a row is malformed.
    """
    path, dropped = split_file(data, split, "product_pairs"), Counter()
    return Products(data, path, _read(path, data["clean"], dropped), dropped)


class Products(PictureRows):
    """`PictureRows` with a second picture, "image2"; where one is absent another stands."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return super().__getitem__(index) | {"image2": self.picture(index, 1)}

    def picture(self, index: int, number: int) -> bytes | np.ndarray:
        return super().picture(index, number) if self._names[index][number] else NO_PICTURE


def _read(path: Path, cleaning: str, dropped: Counter[str]) -> Iterator[Row]:
    table = csv_rows(read_text(path, "file of pairs"), path.name)
    header = next(table)[1]
    if sorted(column for column in header if column != "id") != sorted(COLUMNS):
        raise UserError(f"{path.name} row 1: the header is {','.join(header)[:80]!r}; give {','.join(COLUMNS)}")
    for where, values in table:
        if row := _row(dict(zip(header, values, strict=True)), where, cleaning):
            yield row
        else:
            dropped["rows_with_an_empty_product"] += 1


def _row(entry: Mapping[str, str], where: str, cleaning: str) -> Row | None:
    """A row of the file; None where it says nothing of one of the products."""
    if entry["label"].strip() not in ("0", "1"):
        raise UserError(f"{where}: the label {entry['label']!r} must be 1, the same product, or 0, another; correct it")
    names = [entry[key].strip() and picture_name(entry[key], where) for key in ("image1", "image2")]
    texts = ["".join(usable_captions([clean(entry[key], cleaning)])) for key in ("text1", "text2")]
    if not all(name or text for name, text in zip(names, texts, strict=True)):
        return None
    parts = {"image": names[0], "captions": texts[0], "image2": names[1], "text2": texts[1]}
    known = {
        "text2": texts[1],
        "label": int(entry["label"]),
        "absent": [key for key, value in parts.items() if not value],
    }
    return Row(where, entry.get("id", "").strip(), tuple(names), texts[0] or NO_TEXT, known)
