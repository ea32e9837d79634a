"""Data source `sugarcrepe`: SugarCrepe (Hsieh et al. 2023, arXiv 2306.14610) as its authors release it.

    ROOT/swap_att.json, ...   {"0": {"filename", "caption", "negative_caption"}, ...}, a file a kind
    ROOT/val2017/             the pictures, COCO's of 2017

All files are read at once; the name of each is its kind, and what stands before the first _ its family: the mean of
`add_att` and `add_obj` is that of `add`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskvlm_jax.data.sources import alternatives
from maskvlm_jax.data.sources.alternatives import Alternatives, Case
from maskvlm_jax.data.sources.annotations import field, load_json, picture_name
from maskvlm_jax.data.sources.base import Source
from maskvlm_jax.runtime.errors import UserError


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """All kinds in the folder `data.root`, or in its folder `data`."""
    place = alternatives.find(
        data, split, "sugarcrepe", images=("val2017", "images/val2017", "images"), files=("*.json", "data/*.json")
    )
    cases = [case for path in place.files for case in _cases(path)]
    return Alternatives(cases, place.pictures, max_missing=data["max_missing"])


def _cases(path: Path) -> list[Case]:
    text = alternatives.text_of(path)
    if not isinstance(load_json(text, path.name), dict):
        raise UserError(
            f"{path.name}: no file of SugarCrepe, which maps numbers to captions; set --config.data.captions to the "
            "pattern of its files"
        )
    cases = []
    # As pairs: a number that stands twice stays so.
    for number, pairs in json.loads(text, object_pairs_hook=list):
        where = f"{path.name} {number!r}"
        entry = dict(pairs) if isinstance(pairs, list) and all(isinstance(pair, tuple) for pair in pairs) else pairs
        picture = picture_name(field(entry, "filename", str, where), where)
        captions = [field(entry, key, str, where) for key in ("caption", "negative_caption")]
        family = path.stem.partition("_")[0]
        cases.append(Case(where, f"{path.stem}/{number}", picture, captions, path.stem, family=family))
    return cases
