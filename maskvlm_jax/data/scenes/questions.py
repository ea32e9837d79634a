"""Questions about scenes, ten equal answers each: what VQA asks, made by code.

A scene of `Scenes` gets one question, drawn from the seed, the split and the index alone. Nine kinds of question are
asked equally often. Things are called by as few words as pick them out ("the star", "the red star", "the one
northwest"), in words of the captions where there are such. What is asked is what the picture alone tells: yes and no
are drawn before the question is, what is not there is every second time like what is there, and how many there are is
drawn first too.
"""

import hashlib
import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from maskvlm_jax.data.scenes.captions import NUMBERS, article, pick, plural
from maskvlm_jax.data.scenes.source import Scenes, bits_of
from maskvlm_jax.data.scenes.source import existing_splits as existing_splits
from maskvlm_jax.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    NOVEL_KINDS,
    PLACES,
    RELATIONS,
    SEEN_KINDS,
    SHAPES,
    SIZES,
    TEXTURES,
    Dice,
    Scene,
    SceneObject,
    true_relations,
)
from maskvlm_jax.data.sources.base import Source

PEOPLE = 10  # who answer each question, all alike
_COUNTED = ("none", *NUMBERS[1:])
ANSWERS = ("yes", "no", *_COUNTED, *COLOURS, *SHAPES, *SIZES, *TEXTURES, *PLACES, *BACKGROUNDS)

_VERSION = 2  # of the questions: raise it whenever any of them changes
_ROLLS = 16  # set aside for a question

Asked = tuple[str, str]  # a question and its answer


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """The questions about the split `split` of generated scenes, drawn from the seed `data.scenes_seed`."""
    return SceneQuestions(Scenes(split=split, image_size=image_size, seed=data["scenes_seed"]))


class SceneQuestions:
    """A question about each of some scenes; an example is that of `Scenes` with the question for its caption.

    What else is known of it is what a source `vqa` knows: "answers", "answer", "question_type" and "answer_type".
    """

    def __init__(self, scenes: Scenes):
        self._scenes, self.report = scenes, scenes.report

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._scenes[index] | self.facts(index)

    def facts(self, index: int) -> dict[str, Any]:
        """All that is known of the question; the scene is not drawn."""
        kind, question, answer = self.question(index)
        return {
            "id": self.id(index),
            "captions": [question],
            "answers": [answer] * PEOPLE,
            "answer": answer,
            "question_type": kind,
            "answer_type": {"there": "yes/no", "relation": "yes/no", "count": "number"}.get(kind, "other"),
        }

    def id(self, index: int) -> str:
        """The name of the scene, which has one question."""
        return self._scenes.id(index)

    def captions(self, index: int) -> list[str]:
        """The question."""
        return [self.question(index)[1]]

    def question(self, index: int) -> tuple[str, str, str]:
        """(kind, question, answer) of a scene."""
        scene = self._scenes.scene(index)
        bits = bits_of(self._scenes.seed, self._scenes.split, operator.index(index), stream="questions")
        dice = Dice(bits.random_raw(_ROLLS).tolist())
        kind = pick([kind for kind in _KINDS if _can_be_asked(kind, scene)], dice)
        if kind == "there":
            return kind, *_there(scene, dice, NOVEL_KINDS if self._scenes.split == "novel" else SEEN_KINDS)
        return kind, *_KINDS[kind](scene, dice)

    @property
    def fingerprint(self) -> str:
        """A sha256 in hex that tells apart any two sources with different examples."""
        return hashlib.sha256(f"questions {_VERSION} {self._scenes.fingerprint}".encode()).hexdigest()


def _can_be_asked(kind: str, scene: Scene) -> bool:
    """A relation is between two objects; the place is asked of one that can be told without it."""
    if kind == "relation":
        return len(scene.objects) > 1
    return kind != "place" or any(_names(scene, thing, "place") for thing in scene.objects)


# --- what things are called ------------------------------------------------------------------------------------------


def _called(scene: Scene, thing: SceneObject, dice: Dice, *, hidden: str = "") -> str:
    """Words that pick out one object, the fewest that do, or one time in four its place; `hidden` is not told."""
    names = _names(scene, thing, hidden)
    if not names or (hidden != "place" and dice.roll(4) == 0):
        return f"the one {PLACES[thing.place]}"
    return pick(names, dice)


def _names(scene: Scene, thing: SceneObject, hidden: str) -> list[str]:
    """The shortest names that fit this object alone, without its place."""
    told = [key for key in ("size", "texture", "colour", "shape") if key != hidden]
    for count in range(1, len(told) + 1):
        fitting = [keys for keys in itertools.combinations(told, count) if _fits_one(scene, thing, keys)]
        if fitting:
            return [_name(thing, keys) for keys in fitting]
    return []


def _fits_one(scene: Scene, thing: SceneObject, keys: Sequence[str]) -> bool:
    return sum(all(getattr(other, key) == getattr(thing, key) for key in keys) for other in scene.objects) == 1


def _name(thing: SceneObject, keys: Sequence[str]) -> str:
    words = [getattr(thing, key) for key in keys]
    return " ".join(["the", *words] if "shape" in keys else ["the", *words, "one"])


# --- kinds of questions ----------------------------------------------------------------------------------------------


def _colour(scene: Scene, dice: Dice) -> Asked:
    thing = pick(scene.objects, dice)
    return f"what colour is {_called(scene, thing, dice, hidden='colour')}", thing.colour


def _shape(scene: Scene, dice: Dice) -> Asked:
    thing = pick(scene.objects, dice)
    return f"what shape is {_called(scene, thing, dice, hidden='shape')}", thing.shape


def _size(scene: Scene, dice: Dice) -> Asked:
    thing = pick(scene.objects, dice)
    return f"is {_called(scene, thing, dice, hidden='size')} small or large", thing.size


def _texture(scene: Scene, dice: Dice) -> Asked:
    thing = pick(scene.objects, dice)
    return f"is {_called(scene, thing, dice, hidden='texture')} plain striped or dotted", thing.texture


def _place(scene: Scene, dice: Dice) -> Asked:
    thing = pick([thing for thing in scene.objects if _names(scene, thing, "place")], dice)
    return f"where is {_called(scene, thing, dice, hidden='place')}", PLACES[thing.place]


def _background(scene: Scene, dice: Dice) -> Asked:
    thing = pick(scene.objects, dice)
    return f"what is {_called(scene, thing, dice)} on", scene.background


def _count(scene: Scene, dice: Dice) -> Asked:
    """How many there are of a shape, a colour, a texture or a size; as often none as one, and two where there are."""
    key, values = pick((("shape", SHAPES), ("colour", COLOURS), ("texture", TEXTURES), ("size", SIZES)), dice)
    counts = {value: sum(getattr(thing, key) == value for thing in scene.objects) for value in values}
    number = pick(sorted(set(counts.values())), dice)
    value = pick([value for value, count in counts.items() if count == number], dice)
    return f"how many {plural(value)}" if key == "shape" else f"how many are {value}", _COUNTED[number]


def _there(scene: Scene, dice: Dice, kinds: Sequence[tuple[str, str]]) -> Asked:
    """Whether there is a shape of a colour, a texture or a size."""
    key = pick(("colour", "colour", "texture", "size"), dice)
    choices = {"texture": TEXTURES, "size": SIZES}
    possible = kinds if key == "colour" else tuple(itertools.product(choices[key], dict.fromkeys(s for _, s in kinds)))
    shown = {(getattr(thing, key), thing.shape) for thing in scene.objects}
    if dice.roll(2):
        what, answer = pick(sorted(shown), dice), "yes"
    else:
        absent = [kind for kind in possible if kind not in shown]
        # Every second one has the word or the shape of something that is there.
        near = [kind for kind in absent if any(kind[0] == word or kind[1] == shape for word, shape in shown)]
        what, answer = pick(near if near and dice.roll(2) else absent, dice), "no"
    return f"is there {article(what[0])} {' '.join(what)}", answer


def _relation(scene: Scene, dice: Dice) -> Asked:
    """Whether two objects lie as is said; never of one object."""
    thing, other = pick(tuple(itertools.permutations(scene.objects, 2)), dice)
    true = true_relations(thing, other)
    answer = ("no", "yes")[dice.roll(2)]
    said = pick(true if answer == "yes" else [one for one in RELATIONS if one not in true], dice)
    names = [pick(_names(scene, one, "place") or [f"the one {PLACES[one.place]}"], dice) for one in (thing, other)]
    return f"is {names[0]} {said} {names[1]}", answer


_KINDS = {
    "colour": _colour,
    "shape": _shape,
    "size": _size,
    "texture": _texture,
    "place": _place,
    "background": _background,
    "count": _count,
    "there": _there,
    "relation": _relation,
}
