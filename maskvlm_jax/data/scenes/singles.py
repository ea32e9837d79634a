"""Scenes of one object each, which so have a colour and a shape: classes of pictures.

Beside the ground truth of `Scenes` an example has the "shape", "colour", "size", "texture" and "place" of its object,
and "name", its colour and shape: "red star". As in other scenes, colour and shape pairs of `novel` are in no other
split.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from maskvlm_jax.data.scenes.source import SPLIT_LENGTHS, Scenes
from maskvlm_jax.data.scenes.world import COUNTS, NOVEL_KINDS, SEEN_KINDS, Dice, Scene, sample_scene, showing
from maskvlm_jax.data.sources.base import Source

_KEY = 0x5100  # added to the number of the split: none of these scenes is one of `Scenes`


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """The split `split`, drawn from the seed `data.scenes_seed` at `image_size` pixels."""
    return Singles(split=split, image_size=image_size, seed=data["scenes_seed"])


class Singles(Scenes):
    """Random access to the scenes of one split: an example is a pure function of (seed, split, index)."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = super().__getitem__(index)
        (thing,) = example["objects"]
        looks = {key: thing[key] for key in ("shape", "colour", "size", "texture", "place")}
        return example | looks | {"name": f"{thing['colour']} {thing['shape']}"}

    def id(self, index: int) -> str:
        """The example's name within the project, such as "single-test-000042"."""
        return f"single-{super().id(index)}"

    @property
    def fingerprint(self) -> str:
        """A sha256 in hex that tells apart any two sources with different examples."""
        return self._digest("singles 1")

    def _bits(self, index: int) -> np.random.Philox:
        split = _KEY + list(SPLIT_LENGTHS).index(self.split)
        return np.random.Philox(key=self.seed << 64 | split << 48 | self._checked(index))

    def _scene(self, words: list[int]) -> Scene:
        one = showing(COUNTS.index(1), len(COUNTS))
        return sample_scene(Dice([one, *words]), kinds=NOVEL_KINDS if self.split == "novel" else SEEN_KINDS)
