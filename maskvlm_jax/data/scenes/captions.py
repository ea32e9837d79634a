"""Telegraphic English for scenes: true, lower case, and almost all of it words that only the picture can tell.

Three arrangements share one small grammar. A phrase is `size texture colour shape`, some of the attributes left out.

    list      small red star northwest blue ring south      (each place follows its object)
    chain     small red star above large blue ring          (each relation holds between its two neighbours)
    sentence  there is a small red star above a large blue ring
"""

import itertools
from collections.abc import Sequence
from typing import TypeVar

from maskvlm_jax.data.scenes.world import PLACES, Dice, Scene, SceneObject, true_relations

T = TypeVar("T")

CAPTION_ROLLS = 12  # the rolls set aside for one caption
NUMBERS = ("", "one", "two", "three")

_ORDERS = tuple(tuple(itertools.permutations(range(n))) for n in range(4))
_ARRANGEMENTS = ("list",) * 11 + ("chain",) * 2 + ("sentence",)
# Which attributes a phrase states, by how many objects are mentioned: the fewer objects, the more must be said of each
# for a caption to pick out its picture. Texture and place are stated more often than size, which is half guessed.
_SIZE, _TEXTURE, _PLACE = 1, 2, 4
_PLACED = (
    (),
    (_SIZE | _TEXTURE | _PLACE,),
    (_SIZE | _TEXTURE | _PLACE, _TEXTURE | _PLACE, _SIZE | _PLACE),
    (_PLACE, _PLACE, _TEXTURE | _PLACE, _SIZE | _PLACE),
)
_RELATED = ((), (), (_SIZE | _TEXTURE,), (_TEXTURE, _TEXTURE, _SIZE, _SIZE | _TEXTURE))
_BACKGROUND_ODDS = (1, 1, 2, 6)  # one caption in so many names the background


def caption(scene: Scene, dice: Dice) -> str:
    """One true caption of at most 24 words; rolls the dice at most `CAPTION_ROLLS` times.

    One caption in twelve leaves out one of three objects; all others mention every object by colour and shape.
    """
    mentioned = _mentioned(scene, dice)
    arrangement = pick(_ARRANGEMENTS, dice)
    if _repeats(mentioned) and dice.roll(2):
        words = _counted(mentioned, dice)
    elif arrangement == "list":
        words = _listed(mentioned, dice)
    elif len(mentioned) == 1:
        words = ["there is", *_with_article(_phrase(mentioned[0], _SIZE | _TEXTURE)), PLACES[mentioned[0].place]]
    else:
        words = _chained(mentioned, dice, sentence=arrangement == "sentence")
    if dice.roll(_BACKGROUND_ODDS[len(mentioned)]) == 0:
        words = ["on", scene.background, *words] if dice.roll(3) == 0 else [*words, "on", scene.background]
    return " ".join(words)


def _mentioned(scene: Scene, dice: Dice) -> list[SceneObject]:
    """The objects in the order in which the caption mentions them."""
    mentioned = [scene.objects[i] for i in pick(_ORDERS[len(scene.objects)], dice)]
    # A group is only counted whole, so nothing is left out where a kind repeats.
    if len(mentioned) == 3 and dice.roll(12) == 0 and not _repeats(mentioned):
        mentioned.pop()
    return mentioned


def _repeats(objects: list[SceneObject]) -> bool:
    return len({(o.colour, o.shape) for o in objects}) < len(objects)


def _phrase(thing: SceneObject, details: int) -> list[str]:
    words = []
    if details & _SIZE:
        words.append(thing.size)
    if details & _TEXTURE:
        words.append(thing.texture)
    words += thing.colour, thing.shape
    return words


def _with_article(phrase: list[str]) -> list[str]:
    return [article(phrase[0]), *phrase]


def article(word: str) -> str:
    """The article before a word."""
    return "an" if word[0] in "aeiou" else "a"


def plural(shape: str) -> str:
    """Several of a shape."""
    return f"{shape}es" if shape == "cross" else f"{shape}s"


def _joined(phrases: list[list[str]], dice: Dice) -> list[str]:
    """The phrases one after another, sometimes with a joining word before the last."""
    joint = pick(("", "", "", "and", "with"), dice)
    if joint and len(phrases) > 1:
        phrases.insert(-1, [joint])
    return [word for phrase in phrases for word in phrase]


def pick(choices: Sequence[T], dice: Dice) -> T:
    """One of the choices, each as likely."""
    return choices[dice.roll(len(choices))]


def _listed(things: list[SceneObject], dice: Dice) -> list[str]:
    details = pick(_PLACED[len(things)], dice)
    return _joined([[*_phrase(thing, details), PLACES[thing.place]] for thing in things], dice)


def _chained(things: list[SceneObject], dice: Dice, *, sentence: bool) -> list[str]:
    details = pick(_RELATED[len(things)], dice)
    phrases = [_phrase(thing, details) for thing in things]
    if sentence:
        phrases = [_with_article(phrase) for phrase in phrases]
    words = ["there is", *phrases[0]] if sentence else phrases[0]
    for (before, after), phrase in zip(itertools.pairwise(things), phrases[1:], strict=True):
        words += pick(true_relations(before, after), dice), *phrase
    return words


def _counted(things: list[SceneObject], dice: Dice) -> list[str]:
    """Objects of one kind as one phrase ("two small red stars"), which states the size and texture they share."""
    groups: dict[tuple[str, str], list[SceneObject]] = {}
    for thing in things:
        groups.setdefault((thing.colour, thing.shape), []).append(thing)
    return _joined([_group_phrase(group) for group in groups.values()], dice)


def _group_phrase(group: list[SceneObject]) -> list[str]:
    first = group[0]
    if len(group) == 1:
        return [*_phrase(first, _TEXTURE), PLACES[first.place]]
    words = [NUMBERS[len(group)]]
    if all(thing.size == first.size for thing in group):
        words.append(first.size)
    if all(thing.texture == first.texture for thing in group):
        words.append(first.texture)
    return [*words, first.colour, plural(first.shape)]
