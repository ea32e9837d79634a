"""Expressions are true of the object that is meant and of no other, in words that the captions teach."""

import pickle

import numpy as np
import pytest

from maskvlm_jax.data.scenes.expressions import Expressions, existing_splits, open_split
from maskvlm_jax.data.scenes.source import Scenes
from maskvlm_jax.data.scenes.world import PLACES, RELATIONS
from maskvlm_jax.runtime.errors import UserError
from tests.data.streaming import make_tokenizer

COUNT = 1_000


@pytest.fixture(scope="module")
def source():
    return Expressions(split="test", image_size=32, length=COUNT)


@pytest.fixture(scope="module")
def drawn(source):
    """(objects, the one that is meant, kind, words) of each example."""
    found = []
    for i in range(COUNT):
        scene, meant, kind, words = source._drawn(source._bits(i))
        found.append((scene.objects, meant, kind, words))
    return found


def centre(thing):
    return divmod(thing.place, 3)


def stands(a, relation, b):
    (row, column), (other_row, other_column) = centre(a), centre(b)
    return {
        "above": row < other_row,
        "below": row > other_row,
        "left of": column < other_column,
        "right of": column > other_column,
    }[relation]


def described(words, thing):
    """Whether every word of a phrase is said of an object."""
    return set(words.split()) <= {thing.shape, thing.colour, thing.size, thing.texture, PLACES[thing.place]}


def true_of(words, things):
    """The numbers of the objects that the words are true of, read word by word."""
    relation = next((name for name in RELATIONS if f" {name} " in words), None)
    if relation is None:
        return [i for i, thing in enumerate(things) if described(words, thing)]
    own, its = words.split(f" {relation} ")
    return [
        i
        for i, a in enumerate(things)
        if described(own, a) and any(described(its, b) and stands(a, relation, b) for b in things if b is not a)
    ]


def test_they_are_true_of_the_object_that_is_meant_alone(drawn):
    for things, meant, _, words in drawn:
        assert 2 <= len(things) <= 3 and true_of(words, things) == [meant], words


def test_all_kinds_are_there(drawn):
    kinds = [kind for *_, kind, _ in drawn]
    assert 0.45 < kinds.count("looks") / COUNT < 0.55 and 0.2 < kinds.count("relation") / COUNT < 0.3


def test_nothing_but_the_words_tells_which_object_is_meant(drawn):
    """Of rules that do not read the expression each is right as often as a box at random is."""
    chance = np.mean([1 / len(things) for things, *_ in drawn])
    rules = {
        "first": lambda things: 0,
        "largest": lambda things: int(np.argmax([thing.size == "large" for thing in things])),
        "highest": lambda things: int(np.argmin([thing.place for thing in things])),
        "middle": lambda things: int(np.argmin([abs(thing.place - 4) for thing in things])),
    }
    for name, rule in rules.items():
        assert np.mean([rule(things) == meant for things, meant, *_ in drawn]) == pytest.approx(chance, abs=0.05), name


def test_an_example_has_boxes_and_the_same_picture_every_time(source):
    one = source[3]
    assert one["image"].shape == (32, 32, 3) and one["size"] == (32, 32) and one["captions"] == source.captions(3)
    assert one["box"] in one["candidates"] and one["id"] == "expression-test-000003"
    x0, y0, x1, y1 = one["box"]
    inside = one["image"][y0:y1, x0:x1].max(axis=-1).astype(int)
    assert inside.max() > one["image"].max(axis=-1).mean() + 30, "an object is brighter than its background"
    again = pickle.loads(pickle.dumps(source))[3]
    assert np.array_equal(one["image"], again["image"]) and one["captions"] == again["captions"]
    with pytest.raises(IndexError):
        source[COUNT]


def test_pictures_are_none_of_the_scenes_own():
    scenes, own = Scenes(split="train", image_size=32, length=50), Expressions(split="train", image_size=32, length=50)
    pictures = {scenes[i]["image"].tobytes() for i in range(50)}
    assert not any(own[i]["image"].tobytes() in pictures for i in range(50))


def test_splits_and_seeds_differ_and_are_told_apart():
    sources = [Expressions(split=split, seed=seed, length=20) for split in ("train", "test") for seed in (0, 1)]
    assert len({one.fingerprint for one in sources}) == 4
    assert len({tuple(one.captions(i)[0] for i in range(20)) for one in sources}) == 4


def test_novel_kinds_are_of_the_novel_split_alone():
    novel, seen = (Expressions(split=split, length=100) for split in ("novel", "val"))
    kinds = [
        {(thing.colour, thing.shape) for i in range(100) for thing in source._drawn(source._bits(i))[0].objects}
        for source in (novel, seen)
    ]
    assert not kinds[0] & kinds[1]


def test_no_expression_is_cut_at_the_length_of_the_first_run(source):
    tokenizer = make_tokenizer(Scenes(split="train", image_size=32, length=1_000))
    longest = max(int(tokenizer.encode(source.captions(i)[0], 64)[2].sum()) for i in range(COUNT))
    assert longest <= 20


def test_it_is_opened_by_a_config():
    data = {"scenes_seed": 3}
    assert open_split(data, "val", image_size=48)[0]["image"].shape == (48, 48, 3)
    assert "novel" in existing_splits(data)
    with pytest.raises(UserError, match="there is no split 'dev'"):
        open_split(data, "dev", image_size=48)
