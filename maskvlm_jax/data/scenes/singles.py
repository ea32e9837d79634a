"""Scenes of one object each, which so have a colour and a shape: classes of pictures.

Beside the ground truth of `Scenes` an example has the "shape", "colour", "size", "texture" and "place" of its object,
and "name", its colour and shape: "red star". As in other scenes, colour and shape pairs of `novel` are in no other
split.
"""

from collections.abc import Mapping
from typing import Any

from maskvlm_jax.data.scenes.source import Scenes
from maskvlm_jax.data.scenes.source import existing_splits as existing_splits
from maskvlm_jax.data.scenes.world import COUNTS, NOVEL_KINDS, SEEN_KINDS, Dice, Scene, sample_scene, showing
from maskvlm_jax.data.sources.base import Source


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """The split `split`, drawn from the seed `data.scenes_seed` at `image_size` pixels."""
    return Singles(split=split, image_size=image_size, seed=data["scenes_seed"])


class Singles(Scenes):
    """Random access to the scenes of one split: an example is a pure function of (seed, split, index)."""

    _stream = "singles"

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
        return self._digest("singles 2")

    def _scene(self, words: list[int]) -> Scene:
        one = showing(COUNTS.index(1), len(COUNTS))
        return sample_scene(Dice([one, *words]), kinds=NOVEL_KINDS if self.split == "novel" else SEEN_KINDS)
