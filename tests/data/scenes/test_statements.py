"""Statements about two scenes: true or false by an independent reading, and what words or one picture alone tell."""

import itertools
from collections import Counter, defaultdict

import pytest

from maskvlm_jax.data.scenes.statements import Statements
from maskvlm_jax.data.sources.nlvr2 import sentence_of
from tests.reference.guessing import best_guess


def count(scene, kind):
    """How many objects of a kind, "red star", or of a shape, "star", a scene has."""
    words = kind.split()
    return sum(thing.shape == words[-1] and words[0] in (thing.colour, thing.shape) for thing in scene.objects)


def without_article(phrase):
    return phrase.removeprefix("an ").removeprefix("a ")


def is_true(text, left, right):
    """Whether a statement holds of two scenes."""
    if text.startswith("both with "):
        kind = without_article(text.removeprefix("both with "))
        return count(left, kind) > 0 and count(right, kind) > 0
    if text.startswith("only one with "):
        kind = without_article(text.removeprefix("only one with "))
        return (count(left, kind) > 0) != (count(right, kind) > 0)
    if text.startswith("one with "):
        one, two = (without_article(part) for part in text.removeprefix("one with ").split(" and one with "))
        return any(count(a, one) > 0 and count(b, two) > 0 for a, b in ((left, right), (right, left)))
    if text.endswith(" in all"):
        number, shapes = text.split()[:2]
        shape = shapes.removesuffix("es") if shapes == "crosses" else shapes.removesuffix("s")
        return count(left, shape) + count(right, shape) == {"two": 2, "three": 3}[number]
    one, two = text.removesuffix(" right").split(" left and ")
    return count(left, one) > 0 and count(right, two) > 0


@pytest.fixture(scope="module", params=["train", "novel"])
def source(request):
    return Statements(split=request.param, length=4_000)


@pytest.fixture(scope="module")
def examples(source):
    return [source.example(i) for i in range(len(source))]


def test_the_label_is_what_holds_of_the_two_scenes(examples):
    assert all(str(is_true(one.text, one.left, one.right)) == one.label for one in examples)


def test_every_sentence_is_true_of_half_of_its_pairs(source, examples):
    groups = defaultdict(list)
    for index, one in enumerate(examples):
        groups[sentence_of(source.id(index))].append((one.label, one.text, source.captions(index)[0]))
    assert len(groups) == 1_000 and len({source.id(i) for i in range(len(source))}) == 4_000
    for group in groups.values():
        assert Counter(label for label, *_ in group) == {"True": 2, "False": 2}
        assert len({text for _, *texts in group for text in texts}) == 1
    first = [example.label for example in examples[::4]]
    assert 0.45 < first.count("True") / len(first) < 0.55, "the order tells nothing"


def form(text):
    return "left" if " left and " in text else "in all" if text.endswith("in all") else text.split(" with ")[0]


def test_one_picture_alone_tells_little(examples):
    assert set(Counter(form(one.text) for one in examples)) == {"both", "only one", "one", "in all", "left"}
    for side in ("left", "right"):
        features, labels = [], [one.label for one in examples]
        for one in examples:
            kinds = [word for word in one.text.split() if word not in ("a", "an")]
            scene = getattr(one, side)
            named = [f"{a} {b}" for a, b in itertools.pairwise(kinds)]
            shape = kinds[1].removesuffix("es") if kinds[1] == "crosses" else kinds[1].removesuffix("s")
            counts = [count(scene, kind) for kind in named] if form(one.text) != "in all" else [count(scene, shape)]
            features.append((form(one.text), kinds[0] if form(one.text) == "in all" else "", tuple(counts)))
        assert best_guess(features, labels) < 0.65
        told = [f for f in zip(features, labels, strict=True) if f[0][0] in ("only one", "one", "in all")]
        assert best_guess([f for f, _ in told], [label for _, label in told]) < 0.56
        assert best_guess([len(getattr(one, side).objects) for one in examples], labels) < 0.54


def test_an_example_has_two_pictures_and_a_statement(source):
    example = source[5]
    assert example.keys() == {"id", "image", "image2", "captions", "label"}
    assert example["id"].endswith("-000004-1-0")
    assert example["image"].shape == example["image2"].shape == (64, 64, 3)
    assert (example["image"] != example["image2"]).any()
    with pytest.raises(IndexError):
        source[4_000]
