"""Statements that are true or false of two scenes: what NLVR2 asks, made by code.

Four pairs of pictures share a statement, as in NLVR2; it is true of two of them and false of the others, so that its
words tell nothing. Kinds of statements, of which a kind of object is "a red star" or, where they are counted, "stars":

    both with a red star                             one picture alone tells three times in four
    red star left and blue ring right                likewise
    only one with a red star                         nothing: what the other shows decides, whatever the one shows
    one with a red star and one with a blue ring     likewise
    two stars in all                                 likewise

Half of the pictures show something that is nearly what is spoken of, a red ring or a blue star.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from maskvlm_jax.data.scenes.captions import article, pick, plural
from maskvlm_jax.data.scenes.generated import Generated, Kind, near, repainted
from maskvlm_jax.data.scenes.source import existing_splits as existing_splits
from maskvlm_jax.data.scenes.world import Dice, Scene, sample_scene
from maskvlm_jax.data.sources.base import Source
from maskvlm_jax.data.sources.nlvr2 import LABELS

PAIRS = 4  # of a statement, half of them true
NUMBERS = {2: "two", 3: "three"}

Shown = tuple[tuple[Kind, ...], tuple[Kind, ...]]  # what the left picture shows of what is spoken of, and the right one


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """The statements of a split, drawn from the seed `data.scenes_seed`."""
    return Statements(split=split, image_size=image_size, seed=data["scenes_seed"])


class Statement(NamedTuple):
    """A statement, and what pictures show of which it is true or false.

    spoken: whether it speaks of a kind, which then is in a picture only where it is shown on purpose.
    """

    text: str
    true: tuple[Shown, ...]
    false: tuple[Shown, ...]
    spoken: Callable[[Kind], bool]


class Example(NamedTuple):
    """Two scenes, a statement, and which of `LABELS` it has."""

    left: Scene
    right: Scene
    text: str
    label: str


class Statements(Generated):
    """A statement about each of some pairs of scenes.

    "image" is the left picture, "image2" the right one, "label" one of `nlvr2.LABELS`; ids are as NLVR2's,
    SPLIT-SET-PAIR-SENTENCE.
    """

    name: ClassVar[str] = "statements"
    version: ClassVar[int] = 1

    def id(self, index: int) -> str:
        first, number = self._scenes.id(index - index % PAIRS), index % PAIRS
        return f"{first}-{number}-0"

    def __getitem__(self, index: int) -> dict[str, Any]:
        one = self.example(index)
        pictures = (self.drawn(scene, index, part) for part, scene in enumerate((one.left, one.right)))
        known = {"captions": [one.text], "label": one.label}
        return {"id": self.id(index), **dict(zip(("image", "image2"), pictures, strict=True)), **known}

    def captions(self, index: int) -> list[str]:
        """The statement alone, without drawing."""
        return [self._statement(index)[0].text]

    def example(self, index: int) -> Example:
        """What is drawn and said."""
        statement, is_true = self._statement(index)
        dice = self.dice(index, 1)
        shown = pick(statement.true if is_true else statement.false, dice)
        left, right = (self._scene(kinds, statement, dice) for kinds in shown)
        return Example(left, right, statement.text, LABELS[is_true])

    def _statement(self, index: int) -> tuple[Statement, bool]:
        """What is said of a pair, and whether it is true."""
        dice = self.dice(index - index % PAIRS)
        statement = pick(_FORMS, dice)(dice, self.kinds)
        order = [True, True, False, False]
        for last in range(PAIRS - 1, 0, -1):
            other = dice.roll(last + 1)
            order[last], order[other] = order[other], order[last]
        return statement, order[index % PAIRS]

    def _scene(self, shown: tuple[Kind, ...], statement: Statement, dice: Dice) -> Scene:
        """A scene of two or three objects that shows these kinds, and no other that the statement speaks of."""
        others = [kind for kind in self.kinds if not statement.spoken(kind)]
        scene = sample_scene(dice, kinds=tuple(others))
        while len(scene.objects) < 2:
            scene = sample_scene(dice, kinds=tuple(others))
        things = list(scene.objects)
        for place, kind in enumerate(shown):
            things[place] = repainted(things[place], kind)
        if len(shown) < len(things) and dice.roll(2):  # something that is nearly what is spoken of
            alike = [kind for kind in near(pick(_all(statement), dice), self.kinds) if not statement.spoken(kind)]
            things[-1] = repainted(things[-1], pick(alike or others, dice))
        return scene._replace(objects=tuple(things))


def _all(statement: Statement) -> list[Kind]:
    """The kinds that a statement speaks of, one by one."""
    return sorted({kind for left, right in statement.true for kind in (*left, *right)})


# --- kinds of statements ---------------------------------------------------------------------------------------------


def _a(kind: Kind) -> str:
    return f"{article(kind[0])} {kind[0]} {kind[1]}"


def _of(*kinds: Kind) -> Callable[[Kind], bool]:
    return lambda kind: kind in kinds


def _two(dice: Dice, kinds: Sequence[Kind]) -> tuple[Kind, Kind]:
    """Two different kinds."""
    one = pick(kinds, dice)
    return one, pick([kind for kind in kinds if kind != one], dice)


def _both(dice: Dice, kinds: Sequence[Kind]) -> Statement:
    one = pick(kinds, dice)
    return Statement(f"both with {_a(one)}", (((one,), (one,)),), (((one,), ()), ((), (one,))), _of(one))


def _sides(dice: Dice, kinds: Sequence[Kind]) -> Statement:
    one, two = _two(dice, kinds)
    text = f"{' '.join(one)} left and {' '.join(two)} right"
    return Statement(text, (((one,), (two,)),), (((one,), ()), ((), (two,))), _of(one, two))


def _only_one(dice: Dice, kinds: Sequence[Kind]) -> Statement:
    one = pick(kinds, dice)
    true, false = (((one,), ()), ((), (one,))), (((one,), (one,)), ((), ()))
    return Statement(f"only one with {_a(one)}", true, false, _of(one))


def _one_each(dice: Dice, kinds: Sequence[Kind]) -> Statement:
    one, two = _two(dice, kinds)
    true, false = (((one,), (two,)), ((two,), (one,))), (((one,), (one,)), ((two,), (two,)))
    return Statement(f"one with {_a(one)} and one with {_a(two)}", true, false, _of(one, two))


def _in_all(dice: Dice, kinds: Sequence[Kind]) -> Statement:
    """Two or three of a shape; each number in one picture goes with one in the other that makes it true, and with one
    that makes it false, equally often."""
    shape, number = pick(sorted({shape for _, shape in kinds}), dice), 2 + dice.roll(2)
    of_shape = [kind for kind in kinds if kind[1] == shape]
    counts = ((0, 2), (1, 1), (2, 0)), ((0, 1), (1, 0), (2, 1), (1, 2), (2, 2), (0, 0))
    if number == 3:
        counts = ((1, 2), (2, 1)), ((1, 1), (2, 2))
    true, false = (
        tuple(tuple(tuple(pick(of_shape, dice) for _ in range(n)) for n in pair) for pair in some) for some in counts
    )
    return Statement(f"{NUMBERS[number]} {plural(shape)} in all", true, false, lambda kind: kind[1] == shape)


_FORMS = (_both, _sides, _only_one, _one_each, _in_all)
