"""Hypotheses about scenes, a third of each covered: what SNLI-VE asks, made by code.

A picture shows two or three objects, and one row or column of the grid is painted over, with at least one object under
it and one beside it. A hypothesis says what is where, "there is a small red star northwest". It is entailed by the
picture if that is to be seen, contradicted if something else is to be seen there, and neutral if that place is covered:
then it is true as often as not. So neither its words nor the picture tell the class, only both do.

Half of the hypotheses about three objects mention a second one too, which is to be seen and is told as it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from maskvlm_jax.data.scenes.captions import article, pick
from maskvlm_jax.data.scenes.generated import Generated, Kind, near, repainted
from maskvlm_jax.data.scenes.source import existing_splits as existing_splits
from maskvlm_jax.data.scenes.world import PLACES, SIZES, TEXTURES, Dice, Scene, SceneObject, sample_scene
from maskvlm_jax.data.sources.base import Source
from maskvlm_jax.data.sources.snli_ve import LABELS

COVER = (168, 168, 168)  # grey, lighter than any background
# The rows and columns of the grid that can be covered, and from where to where in 64ths: an object of them is hidden
# wholly, wherever it was shifted to, and one beside them loses at most a fifth of its width.
LINES = tuple(tuple(range(3 * row, 3 * row + 3)) for row in range(3))
LINES += tuple(tuple(range(column, 9, 3)) for column in range(3))
_BANDS = ((0, 24), (20, 44), (40, 64))

# Which attributes are told beside colour and shape.
_DETAILS = ((), ("size",), ("texture",), ("size", "texture"))


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """The hypotheses of a split, drawn from the seed `data.scenes_seed`."""
    return Hypotheses(split=split, image_size=image_size, seed=data["scenes_seed"])


class Hypothesis(NamedTuple):
    """A scene, which of `LINES` is covered, what is said of it, and which of `LABELS` that has."""

    scene: Scene
    line: int
    text: str
    label: str


class Hypotheses(Generated):
    """A hypothesis about each of some scenes; "label" is one of `snli_ve.LABELS`."""

    name: ClassVar[str] = "hypotheses"
    version: ClassVar[int] = 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        one = self.hypothesis(index)
        picture = covered(self.drawn(one.scene, index, 0), one.line)
        return {"id": self.id(index), "image": picture, "captions": [one.text], "label": one.label}

    def captions(self, index: int) -> list[str]:
        """The hypothesis alone, without drawing."""
        return [self.hypothesis(index).text]

    def hypothesis(self, index: int) -> Hypothesis:
        """What is drawn and said."""
        return _hypothesis(self.dice(index), tuple(self.kinds))


def covered(picture: np.ndarray, line: int) -> np.ndarray:
    """The picture with one of `LINES` painted over."""
    size, (start, stop) = len(picture), _BANDS[line % 3]
    band = slice(start * size // 64, -(-stop * size // 64))
    picture = picture.copy()
    picture[(band, slice(None)) if line < 3 else (slice(None), band)] = COVER
    return picture


def _hypothesis(dice: Dice, kinds: tuple[Kind, ...]) -> Hypothesis:
    scene, line = _covered_scene(dice, kinds)
    hidden = [thing for thing in scene.objects if thing.place in LINES[line]]
    seen = [thing for thing in scene.objects if thing.place not in LINES[line]]
    label = pick(LABELS, dice)
    told = pick(hidden if label == "neutral" else seen, dice)
    details = pick(_DETAILS, dice)
    is_true = dice.roll(2) == 0 if label == "neutral" else label == "entailment"
    said = [told if is_true else _changed(told, details, kinds, dice)]
    rest = [thing for thing in seen if thing is not told]
    # Of three objects, two that are seen beside a hidden one: a second one can be told whatever the class is.
    if len(seen) == 2 and dice.roll(2):
        said.append(pick(rest, dice))
        if dice.roll(2):
            said.reverse()
    return Hypothesis(scene, line, _text(said, details), label)


def _covered_scene(dice: Dice, kinds: tuple[Kind, ...]) -> tuple[Scene, int]:
    """A scene and a line of it with objects both under and beside it."""
    while True:
        scene, line = sample_scene(dice, kinds=kinds), dice.roll(len(LINES))
        under = sum(thing.place in LINES[line] for thing in scene.objects)
        if 0 < under < len(scene.objects):
            return scene, line


def _changed(thing: SceneObject, details: Sequence[str], kinds: Sequence[Kind], dice: Dice) -> SceneObject:
    """The object with another value of one of the attributes that are told."""
    attribute = pick(("kind", *details), dice)
    if attribute == "size":
        return thing._replace(size=SIZES[1 - SIZES.index(thing.size)])
    if attribute == "texture":
        return thing._replace(texture=pick([texture for texture in TEXTURES if texture != thing.texture], dice))
    return repainted(thing, pick(near((thing.colour, thing.shape), kinds), dice))


def _text(things: Sequence[SceneObject], details: Sequence[str]) -> str:
    phrases = []
    for thing in things:
        words = [getattr(thing, name) for name in details] + [thing.colour, thing.shape, PLACES[thing.place]]
        phrases.append(words)
    if len(phrases) == 1:
        return " ".join(["there is", article(phrases[0][0]), *phrases[0]])
    return " and ".join(" ".join(words) for words in phrases)
