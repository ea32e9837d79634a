"""Data source `aro`: ARO (Yuksekgonul et al. 2023, arXiv 2210.01936) as its authors release it.

    ROOT/visual_genome_relation.json      [{"image_path", "true_caption", "false_caption", "bbox_x", "bbox_y", "bbox_w",
    ROOT/visual_genome_attribution.json     "bbox_h", "relation_name" | "attributes", ...}, ...]
    ROOT/images/                          the pictures, of which the box alone is read

The order sets of COCO and Flickr30k are not released as files: the authors' program permutes captions at random. What
it has made is read as a file of its test cases, [{"image", "caption_options": [true, permuted, ...]}, ...], whose name
is the kind.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskvlm_jax.data import decoding
from maskvlm_jax.data.sources import alternatives
from maskvlm_jax.data.sources.alternatives import Alternatives, Case
from maskvlm_jax.data.sources.annotations import Json, field, load_json, picture_name, rows
from maskvlm_jax.data.sources.base import Source
from maskvlm_jax.runtime.errors import UserError

KINDS = {"visual_genome_relation": "vg_relation", "visual_genome_attribution": "vg_attribution"}

Box = tuple[float, float, float, float]


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """All kinds in the folder `data.root`."""
    place = alternatives.find(data, split, "aro", images=("images",), files=("visual_genome_*.json",))
    read = [one for path in place.files for one in _cases(path)]
    return Aro(read, place.pictures, max_missing=data["max_missing"])


class Aro(Alternatives):
    """Cases, of whose pictures a box is read: (left, top, width, height) in pixels; None = the whole picture."""

    def __init__(self, cases: Sequence[tuple[Case, Box | None]], folder: Path, *, max_missing: float):
        self._boxes = {case.id: box for case, box in cases}
        super().__init__([case for case, _ in cases], folder, max_missing=max_missing)

    def image(self, index: int) -> bytes | np.ndarray:
        """The part of the picture in the box; b"" where the picture cannot be read, or the box is not on it."""
        encoded, box = super().image(index), self._boxes[self.id(index)]
        if box is None:
            return encoded
        try:
            pixels = decoding.decode(encoded)
        except decoding.DecodeError:
            return b""
        x, y, width, height = box
        # As Pillow crops: ends are rounded.
        left, top, right, bottom = (max(0, round(end)) for end in (x, y, x + width, y + height))
        part = pixels[top:bottom, left:right]
        return np.ascontiguousarray(part) if part.size else b""


def _cases(path: Path) -> list[tuple[Case, Box | None]]:
    entries = load_json(alternatives.text_of(path), path.name)
    if not isinstance(entries, list):
        raise UserError(
            f"{path.name}: no file of ARO, which is a list of pictures and captions; set --config.data.captions to the "
            "pattern of its files"
        )
    kind = KINDS.get(path.stem, path.stem)
    return [
        _case(where, f"{kind}/{number}", kind, entry) for number, (where, entry) in enumerate(rows(entries, path.name))
    ]


def _case(where: str, name: str, kind: str, entry: Json) -> tuple[Case, Box | None]:
    if isinstance(entry, dict) and "caption_options" in entry:
        captions = field(entry, "caption_options", list, where)
        if len(captions) < 2:
            raise UserError(
                f"{where}: 'caption_options' holds {len(captions)} captions; give the true one and false ones"
            )
        return Case(where, name, picture_name(field(entry, "image", str, where), where), captions, kind), None
    picture = picture_name(field(entry, "image_path", str, where), where)
    captions = [field(entry, key, str, where) for key in ("true_caption", "false_caption")]
    box = tuple(field(entry, f"bbox_{key}", (int, float), where) for key in "xywh")
    if not all(np.isfinite(box)) or min(box[2:]) <= 0 or any(isinstance(value, bool) for value in box):
        raise UserError(f"{where}: the box {box} has no area; correct it or remove the row")
    return Case(where, name, picture, captions, kind, tag=_tag(entry, where)), box


def _tag(entry: Json, where: str) -> str:
    """The relation, or both attributes."""
    if "relation_name" in entry:
        return field(entry, "relation_name", str, where)
    attributes = entry.get("attributes", [])
    if not isinstance(attributes, list) or not all(isinstance(one, str) for one in attributes):
        raise UserError(f"{where}: 'attributes' must be a list of texts")
    return "_".join(attributes)
