"""The world of `scenes`: one to three coloured shapes on a 3x3 grid of places, sampled from a stream of integers.

Lengths are in units of 1/64 of the picture's side, so a scene means the same at every resolution.
"""

import functools
import itertools
from collections.abc import Iterable
from typing import NamedTuple

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "moon")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS = ("grey", "black", "navy", "teal", "brown")
# One word each: a word that several places share ("top" in "top left") tells little of any.
PLACES = ("northwest", "north", "northeast", "west", "centre", "east", "southwest", "south", "southeast")
RELATIONS = ("above", "below", "left of", "right of")

# One colour per shape and one shape per colour: a fixed eighth of the pairs, which only the `novel` split shows.
NOVEL_KINDS = tuple((colour, SHAPES[(3 * c + 1) % 8]) for c, colour in enumerate(COLOURS))
SEEN_KINDS = tuple(kind for kind in itertools.product(COLOURS, SHAPES) if kind not in NOVEL_KINDS)

GRID = (12, 32, 52)  # where the rows and columns lie
# With a jitter of 1 each, a small and a large neighbour (7 + 11) fit in one step of the grid; two large ones do not.
RADIUS = {"small": 7, "large": 11}
SLOPE = 8  # steepest background gradient, in grey levels from the centre to an edge
COUNTS = (1,) * 8 + (2,) * 9 + (3,) * 3
SCENE_ROLLS = 24  # the rolls set aside for sampling a scene


class SceneObject(NamedTuple):
    """One shape: how it looks, which of the `PLACES` it is at, and how far it is shifted from there."""

    shape: str
    colour: str
    size: str
    texture: str
    place: int
    jitter: tuple[int, int]

    def box(self, image_size: int) -> tuple[int, int, int, int]:
        """The pixels it may cover, as (x0, y0, x1, y1) with x1 and y1 exclusive; the boxes of a scene never overlap."""
        radius = RADIUS[self.size] * image_size // 64
        row, column = divmod(self.place, 3)
        x = (GRID[column] + self.jitter[0]) * image_size // 64
        y = (GRID[row] + self.jitter[1]) * image_size // 64
        return x - radius, y - radius, x + radius, y + radius


class Scene(NamedTuple):
    """Objects, the background they lie on, and the (x, y) slope of the background's brightness."""

    objects: tuple[SceneObject, ...]
    background: str
    slope: tuple[int, int]

    def relations(self) -> list[tuple[int, str, int]]:
        """Every true (i, relation, j) between two of the objects."""
        pairs = itertools.permutations(range(len(self.objects)), 2)
        return [(i, name, j) for i, j in pairs for name in true_relations(self.objects[i], self.objects[j])]


@functools.cache
def _place_relations(place: int, other: int) -> tuple[str, ...]:
    (row, column), (other_row, other_column) = divmod(place, 3), divmod(other, 3)
    truth = (row < other_row, row > other_row, column < other_column, column > other_column)
    return tuple(itertools.compress(RELATIONS, truth))


def true_relations(a: SceneObject, b: SceneObject) -> tuple[str, ...]:
    """The relations in which `a` stands to `b`: the rows and columns of their places decide, not their jitter."""
    return _place_relations(a.place, b.place)


class Dice:
    """Bounded integers from a stream of 64-bit words, one word a roll.

    It is far cheaper than a `Generator` for a few dozen scalars, and the stream of a bit generator never changes
    between NumPy versions, whereas the distributions built on it may.
    """

    def __init__(self, words: Iterable[int]):
        self._next = iter(words).__next__

    def roll(self, sides: int) -> int:
        """An integer in [0, sides)."""
        return self._next() * sides >> 64


def showing(side: int, sides: int) -> int:
    """The word that `Dice.roll(sides)` reads as `side`."""
    return -(-(side << 64) // sides)


@functools.cache
def _layouts(sizes: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """All ways to give objects of these sizes a place each such that no two large ones are neighbours."""

    def crowded(a: int, b: int) -> bool:
        return abs(a // 3 - b // 3) < 2 and abs(a % 3 - b % 3) < 2

    large = [i for i, size in enumerate(sizes) if size == "large"]
    return tuple(
        places
        for places in itertools.permutations(range(9), len(sizes))
        if not any(crowded(places[i], places[j]) for i, j in itertools.combinations(large, 2))
    )


def sample_scene(dice: Dice, *, kinds: tuple[tuple[str, str], ...]) -> Scene:
    """A scene whose objects are of the given (colour, shape) kinds; rolls the dice at most `SCENE_ROLLS` times."""
    roll = dice.roll
    count = COUNTS[roll(len(COUNTS))]
    looks = [(kinds[roll(len(kinds))], SIZES[roll(2)], TEXTURES[roll(3)]) for _ in range(count)]
    if count == 3 and roll(6) == 0:  # two of a kind, so that there is something to count
        looks[1] = (looks[0][0], *looks[1][1:])
    layouts = _layouts(tuple([size for _, size, _ in looks]))
    places = layouts[roll(len(layouts))]
    objects = tuple(
        [
            SceneObject(shape, colour, size, texture, place, (roll(3) - 1, roll(3) - 1))
            for ((colour, shape), size, texture), place in zip(looks, places, strict=True)
        ]
    )
    slope = (roll(2 * SLOPE + 1) - SLOPE, roll(2 * SLOPE + 1) - SLOPE)
    return Scene(objects, BACKGROUNDS[roll(len(BACKGROUNDS))], slope)
