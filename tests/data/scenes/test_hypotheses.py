"""Hypotheses: their classes by an independent reading, and what words or pictures alone tell of them."""

from collections import Counter

import numpy as np
import pytest

from maskvlm_jax.data.scenes.hypotheses import COVER, LINES, Hypotheses, covered
from maskvlm_jax.data.scenes.world import COLOURS, PLACES, SHAPES, SIZES, TEXTURES
from tests.reference.guessing import best_guess

VALUES = {"size": SIZES, "texture": TEXTURES, "colour": COLOURS, "shape": SHAPES}
SPLITS = ("train", "novel")


def said(text):
    """The objects that a hypothesis mentions: attributes, and "place" as a number."""
    things, here = [], {}
    for word in text.removeprefix("there is ").split():
        for name, values in VALUES.items():
            if word in values:
                here[name] = word
        if word in PLACES:
            things.append(here | {"place": PLACES.index(word)})
            here = {}
    return things


def class_of(text, scene, line):
    """What a picture with a covered line tells of a hypothesis."""
    classes = set()
    for thing in said(text):
        there = [one for one in scene.objects if one.place == thing["place"]]
        fits = bool(there) and all(getattr(there[0], name) == value for name, value in thing.items())
        classes.add("neutral" if thing["place"] in LINES[line] else "entailment" if fits else "contradiction")
    return min(classes, key=("contradiction", "neutral", "entailment").index)


@pytest.fixture(scope="module", params=SPLITS)
def examples(request):
    source = Hypotheses(split=request.param, length=4_000)
    return [source.hypothesis(i) for i in range(len(source))]


def test_the_class_is_that_of_what_is_to_be_seen(examples):
    assert all(class_of(one.text, one.scene, one.line) == one.label for one in examples)


def test_classes_are_as_frequent_and_words_alone_hardly_tell_them(examples):
    labels = [one.label for one in examples]
    assert all(abs(count / len(labels) - 1 / 3) < 0.03 for count in Counter(labels).values())
    words = [word for one in examples for word in one.text.split()]
    for word in set(words):
        assert best_guess([word in one.text.split() for one in examples], labels) < 0.38, word
    assert best_guess([tuple(sorted(thing["place"] for thing in said(one.text))) for one in examples], labels) < 0.38
    assert best_guess([len(one.text.split()) for one in examples], labels) < 0.38


def test_the_picture_alone_hardly_tells_the_class(examples):
    labels = [one.label for one in examples]
    under = [tuple(sorted((t.place in LINES[one.line], t.size) for t in one.scene.objects)) for one in examples]
    for feature in (under, [one.line for one in examples], [len(one.scene.objects) for one in examples]):
        assert best_guess(feature, labels) < 0.38


def test_half_of_the_neutral_hypotheses_are_true(examples):
    def is_true(one):
        return all(
            any(all(getattr(there, name) == value for name, value in thing.items()) for there in one.scene.objects)
            for thing in said(one.text)
        )

    assert 0.4 < np.mean([is_true(one) for one in examples if one.label == "neutral"]) < 0.6


@pytest.mark.parametrize("image_size", [32, 48, 64, 224])
def test_nothing_of_what_is_covered_is_to_be_seen(image_size):
    source = Hypotheses(split="train", image_size=image_size, length=60)
    for index in range(len(source)):
        one = source.hypothesis(index)
        bare = one.scene._replace(objects=tuple(t for t in one.scene.objects if t.place not in LINES[one.line]))
        picture = source[index]["image"]
        np.testing.assert_array_equal(covered(source.drawn(bare, index, 0), one.line), picture)
        share = np.mean(np.all(picture == COVER, axis=-1))
        assert 0.33 < share < 0.45
