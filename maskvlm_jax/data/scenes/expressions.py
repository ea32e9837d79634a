"""The data source of expressions: a scene of two or three objects, and words that are true of one of them alone.

Three kinds, in the captions' own grammar and words:

    looks     small red star         (size, texture, colour, shape: some of them)
    place     ring northwest         (of an object, or "red ring northwest")
    relation  star above blue ring   (the first is meant; no words of looks beside its colour)

Half of them are of looks. Which object is meant is drawn before anything is said of it, so that without the words
neither size nor place nor order tells it.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from maskvlm_jax.data.scenes.drawing import draw, noise_words
from maskvlm_jax.data.scenes.source import Scenes, bits_of
from maskvlm_jax.data.scenes.source import existing_splits as existing_splits
from maskvlm_jax.data.scenes.world import (
    NOVEL_KINDS,
    PLACES,
    SCENE_ROLLS,
    SEEN_KINDS,
    Dice,
    Scene,
    SceneObject,
    sample_scene,
    true_relations,
)
from maskvlm_jax.data.sources.base import Source

MOST_OBJECTS = 3

_VERSION = 2  # of the generator: raise it whenever any picture or expression changes
_ROLLS = 3
_KINDS = ("looks", "looks", "place", "relation")
_DETAILS = ("size", "texture", "colour")
_LOOKS = tuple(itertools.chain.from_iterable(itertools.combinations(_DETAILS, n) for n in range(4)))


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """The split `split`, drawn from the seed `data.scenes_seed` at `image_size` pixels."""
    return Expressions(split=split, image_size=image_size, seed=data["scenes_seed"])


class Expressions:
    """Random access to the expressions of one split: an example is a pure function of (seed, split, index).

    An example has, beside "id", "image" and the expression as the only one of "captions": "box" of the object that is
    meant and "candidates", the boxes of all objects, in pixels (x0, y0, x1, y1); "size" of the picture, (height,
    width); "kind" of the expression.
    """

    def __init__(self, *, split: str, image_size: int = 64, seed: int = 0, length: int | None = None):
        """Opens a split; arguments and errors are those of `Scenes`."""
        self._scenes = Scenes(split=split, image_size=image_size, seed=seed, length=length)
        self.report: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        bits = self._bits(index)
        scene, meant, kind, words = self._drawn(bits)
        size = self._scenes.image_size
        return {
            "id": self.id(index),
            "image": draw(scene, bits.random_raw(noise_words(size)), image_size=size),
            "captions": [words],
            "box": scene.objects[meant].box(size),
            "candidates": [thing.box(size) for thing in scene.objects],
            "size": (size, size),
            "kind": kind,
        }

    def id(self, index: int) -> str:
        """The example's name within the project, such as "expression-test-000042"."""
        return f"expression-{self._scenes.id(index)}"

    def captions(self, index: int) -> list[str]:
        """The expression, without drawing the scene."""
        return [self._drawn(self._bits(index))[3]]

    @property
    def fingerprint(self) -> str:
        """A sha256 in hex that tells apart any two sources with different examples."""
        return hashlib.sha256(f"expressions {_VERSION} {self._scenes.fingerprint}".encode()).hexdigest()

    def _bits(self, index: int) -> np.random.Philox:
        """The example's own stream of bits."""
        number = int(self._scenes.id(index).rpartition("-")[2])  # an index that there is
        return bits_of(self._scenes.seed, self._scenes.split, number, stream="expressions")

    def _drawn(self, bits: np.random.Philox) -> tuple[Scene, int, str, str]:
        """The scene, the number of the object that is meant, the kind of the expression and its words."""
        kinds = NOVEL_KINDS if self._scenes.split == "novel" else SEEN_KINDS
        while True:  # six scenes in ten have more than one object
            scene = sample_scene(Dice(bits.random_raw(SCENE_ROLLS).tolist()), kinds=kinds)
            if len(scene.objects) > 1:
                break
        dice = Dice(bits.random_raw(_ROLLS).tolist())
        meant = dice.roll(len(scene.objects))
        return scene, meant, *expression(scene, meant, dice)


def expression(scene: Scene, meant: int, dice: Dice) -> tuple[str, str]:
    """A kind of expression and its words, true of the object `meant` alone; rolls the dice twice."""
    wanted = _KINDS[dice.roll(len(_KINDS))]
    # Where no words of the wanted kind tell the object from the others, its place does.
    choices = [" ".join(words) for words in _SAID[wanted](scene.objects, meant)]
    if not choices:
        wanted, choices = "place", [" ".join(words) for words in _placed(scene.objects, meant)]
    return wanted, choices[dice.roll(len(choices))]


def _phrase(thing: SceneObject, details: Sequence[str]) -> list[str]:
    return [*(getattr(thing, name) for name in details), thing.shape]


def _fits(thing: SceneObject, other: SceneObject, details: Sequence[str]) -> bool:
    """Whether the phrase of `thing` is true of the other too."""
    return _phrase(thing, details) == _phrase(other, details)


def _looked(things: Sequence[SceneObject], meant: int) -> Iterator[list[str]]:
    for details in _LOOKS:
        if sum(_fits(things[meant], thing, details) for thing in things) == 1:
            yield _phrase(things[meant], details)


def _placed(things: Sequence[SceneObject], meant: int) -> Iterator[list[str]]:
    for details in ((), ("colour",)):
        yield [*_phrase(things[meant], details), PLACES[things[meant].place]]


def _related(things: Sequence[SceneObject], meant: int) -> Iterator[list[str]]:
    for other in things[:meant] + things[meant + 1 :]:
        for relation in true_relations(things[meant], other):
            for own, its in itertools.product(((), ("colour",)), repeat=2):
                pairs = itertools.permutations(range(len(things)), 2)
                true_of = {
                    i
                    for i, j in pairs
                    if _fits(things[meant], things[i], own)
                    and _fits(other, things[j], its)
                    and relation in true_relations(things[i], things[j])
                }
                if true_of == {meant}:
                    yield [*_phrase(things[meant], own), relation, *_phrase(other, its)]


_SAID = {"looks": _looked, "place": _placed, "relation": _related}
