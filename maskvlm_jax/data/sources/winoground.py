"""Data source `winoground`: Winoground (Thrush et al. 2022, arXiv 2204.03162) as its authors release it.

    ROOT/examples.jsonl   a line an item: {"id", "image_0", "image_1", "caption_0", "caption_1", "collapsed_tag", ...}
    ROOT/images/          ex_0_img_0.png, ...: the names that the file gives, and .png

An item is two examples of one group, a picture with its caption and the other's.
"""

import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskvlm_jax.data.sources import alternatives
from maskvlm_jax.data.sources.alternatives import Alternatives, Case
from maskvlm_jax.data.sources.annotations import field, load_json, picture_name
from maskvlm_jax.data.sources.base import Source

KIND = "winoground"


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """All items in the folder `data.root`, or in its folder `data`."""
    place = alternatives.find(
        data, split, KIND, images=("images", "data/images"), files=("examples.jsonl", "data/examples.jsonl")
    )
    cases = [case for path in place.files for case in _cases(path)]
    return Alternatives(cases, place.pictures, max_missing=data["max_missing"])


def _cases(path: Path) -> list[Case]:
    cases = []
    # Not `splitlines`: it also breaks at characters such as U+2028, which may stand unescaped in a JSON string.
    for row, line in enumerate(alternatives.text_of(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path.name} row {row}"
        entry = load_json(line, where)
        group, tag = str(field(entry, "id", (int, str), where)), entry.get("collapsed_tag", entry.get("tag", ""))
        captions = [field(entry, f"caption_{number}", str, where) for number in (0, 1)]
        for number, both in enumerate((captions, captions[::-1])):
            name = picture_name(field(entry, f"image_{number}", str, where), where)
            name = name if posixpath.splitext(name)[1] else f"{name}.png"
            tag = tag if isinstance(tag, str) else ""
            cases.append(Case(where, f"{group}/{number}", name, both, KIND, group=group, tag=tag))
    return cases
