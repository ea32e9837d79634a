"""Scenes of two objects with a true caption and one in which the two have swapped what tells them apart.

In the manner of SugarCrepe's swaps (Hsieh et al. 2023, arXiv 2306.14610), but both captions hold the same words, each
as often: a model that does not know what belongs to what is right half of the time. So is one that reads the captions
alone: what is false of one picture is as often true of another. Not so in the split `novel`, where colours and shapes
that are swapped make pairs that are known from training.

    swap_colour    red star north blue ring south    blue star north red ring south
    swap_shape     red star north blue ring south    red ring north blue star south
    swap_texture   plain red star north dotted blue ring south    dotted red star north plain blue ring south
    swap_place     red star north blue ring south    red star south blue ring north
    swap_relation  red star above blue ring          blue ring above red star
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from maskvlm_jax.data.scenes.captions import article, pick
from maskvlm_jax.data.scenes.drawing import draw, noise_words
from maskvlm_jax.data.scenes.source import Scenes
from maskvlm_jax.data.scenes.source import existing_splits as existing_splits
from maskvlm_jax.data.scenes.world import (
    COUNTS,
    NOVEL_KINDS,
    PLACES,
    SCENE_ROLLS,
    SEEN_KINDS,
    Dice,
    Scene,
    SceneObject,
    sample_scene,
    showing,
    true_relations,
)
from maskvlm_jax.data.sources.base import Source

KINDS = ("swap_colour", "swap_shape", "swap_texture", "swap_place", "swap_relation")
_ATTRIBUTES = KINDS[:-1]  # a relation is none
FAMILY = "swap_attribute"

_CAPTION_ROLLS = 8
_TRIES = 64  # scenes that are drawn until one can be swapped; of each at least one in five can
_JOINTS = ("", "", "", "and", "with")
_DETAILS = ((), ("size",), ("texture",), ("size", "texture"))


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """The split `split`, drawn from the seed `data.scenes_seed` at `image_size` pixels."""
    return Swaps(split=split, image_size=image_size, seed=data["scenes_seed"])


class Swaps(Scenes):
    """Random access to the pairs of captions of one split: an example is a pure function of (seed, split, index).

    An example is {"id", "image", "captions": [true, false], "kind", "family"}; the kinds take turns.
    """

    _stream = "swaps"

    def __getitem__(self, index: int) -> dict[str, Any]:
        drawn = self._drawn(index)
        noise = drawn.bits.random_raw(noise_words(self.image_size))
        return {
            "id": self.id(index),
            "image": draw(drawn.scene, noise, image_size=self.image_size),
            "captions": list(drawn.captions),
            "kind": _kind(index),
            "family": FAMILY if _kind(index) in _ATTRIBUTES else "",
        }

    def id(self, index: int) -> str:
        """The example's name within the project, such as "swap_shape-test-000041"."""
        return f"{_kind(index)}-{super().id(index)}"

    def captions(self, index: int) -> list[str]:
        """The true caption and the false one, without drawing the picture."""
        return list(self._drawn(index).captions)

    def scene(self, index: int) -> Scene:
        """What the example shows, without drawing it."""
        return self._drawn(index).scene

    @property
    def fingerprint(self) -> str:
        """A sha256 in hex that tells apart any two sources with different examples."""
        return self._digest("swaps 2")

    def _drawn(self, index: int) -> "_Drawn":
        bits = self._bits(index)
        kinds = NOVEL_KINDS if self.split == "novel" else SEEN_KINDS
        two = showing(COUNTS.index(2), len(COUNTS))
        for _ in range(_TRIES):
            scene = sample_scene(Dice([two, *bits.random_raw(SCENE_ROLLS).tolist()]), kinds=kinds)
            dice = Dice(bits.random_raw(_CAPTION_ROLLS).tolist())
            swapped = _swapped(_kind(index), scene.objects)
            if swapped is not None and (self.split == "novel" or all(_looks(one) in SEEN_KINDS for one in swapped)):
                return _Drawn(scene, _captions(_kind(index), scene.objects, swapped, dice), bits)
        raise AssertionError(f"no scene of {_TRIES} can be swapped")


class _Drawn(NamedTuple):
    scene: Scene
    captions: tuple[str, str]
    bits: np.random.Philox  # behind what was drawn of it


def _kind(index: int) -> str:
    return KINDS[index % len(KINDS)]


def _looks(thing: SceneObject) -> tuple[str, str]:
    return thing.colour, thing.shape


def _swapped(kind: str, objects: tuple[SceneObject, ...]) -> tuple[SceneObject, SceneObject] | None:
    """The two objects as the false caption has them; None where they do not differ in what is swapped."""
    first, second = objects
    if kind in ("swap_place", "swap_relation"):
        different = _looks(first) != _looks(second) and bool(true_relations(first, second))
        return (first._replace(place=second.place), second._replace(place=first.place)) if different else None
    key = kind.removeprefix("swap_")
    own, other = getattr(first, key), getattr(second, key)
    return (first._replace(**{key: other}), second._replace(**{key: own})) if own != other else None


def _captions(
    kind: str, objects: tuple[SceneObject, ...], swapped: tuple[SceneObject, SceneObject], dice: Dice
) -> tuple[str, str]:
    """The true caption and the false one, both in one order of the objects and with one choice of details."""
    order = (0, 1) if dice.roll(2) else (1, 0)
    true, false = ([things[i] for i in order] for things in (objects, swapped))
    details = pick(_DETAILS, dice)
    if kind == "swap_relation":
        relation, sentence = pick(true_relations(*true), dice), dice.roll(3) == 0
        return _related(true, relation, details, sentence), _related(true[::-1], relation, details, sentence)
    if kind == "swap_texture":
        details = tuple(dict.fromkeys((*details, "texture")))
    joint = pick(_JOINTS, dice)
    return _listed(true, details, joint), _listed(false, details, joint)


def _phrase(thing: SceneObject, details: tuple[str, ...]) -> str:
    return " ".join([*(getattr(thing, detail) for detail in details), thing.colour, thing.shape])


def _listed(things: list[SceneObject], details: tuple[str, ...], joint: str) -> str:
    first, second = (f"{_phrase(thing, details)} {PLACES[thing.place]}" for thing in things)
    return f"{first} {joint} {second}" if joint else f"{first} {second}"


def _related(things: list[SceneObject], relation: str, details: tuple[str, ...], sentence: bool) -> str:
    first, second = (_phrase(thing, details) for thing in things)
    if not sentence:
        return f"{first} {relation} {second}"
    return f"there is {article(first)} {first} {relation} {article(second)} {second}"
