"""Pairs of products: the same or not by what is drawn, and what one product alone tells of it."""

import itertools
from collections import Counter

import numpy as np
import pytest

from maskvlm_jax.data.scenes.products import PARTS, Products
from maskvlm_jax.data.scenes.world import Scene
from tests.data.scenes.test_scenes import holds, read, truth
from tests.reference.guessing import best_guess


@pytest.fixture(scope="module", params=["train", "novel"])
def source(request):
    return Products(split=request.param, length=4_000)


@pytest.fixture(scope="module")
def pairs(source):
    return [source.pair(i) for i in range(len(source))]


def looks(scene):
    """Of each object all but its shift."""
    return sorted(thing[:5] for thing in scene.objects)


def test_products_are_the_same_where_their_objects_are_and_differ_in_one_attribute_of_one_otherwise(pairs):
    for pair in pairs:
        one, two = map(looks, pair.scenes)
        assert pair.same == (one == two)
        if not pair.same:
            assert {thing[4] for thing in one} == {thing[4] for thing in two}, "places are those of the product"
            changed = [
                sum(x != y for x, y in zip(a, b, strict=True))
                for a, b in zip(*(sorted(things, key=lambda thing: thing[4]) for things in (one, two)), strict=True)
            ]
            assert sorted(changed)[:-1] == [0] * (len(one) - 1) and max(changed) in (1, 2)


def test_a_product_is_seen_in_other_surroundings_and_told_in_other_words(pairs):
    same = [pair for pair in pairs if pair.same]
    assert np.mean([a.background == b.background for a, b in (pair.scenes for pair in same)]) < 0.3
    assert np.mean([pair.texts[0] == pair.texts[1] for pair in same]) < 0.1


class Told:
    """A scene of a pair as a source of scenes, for `truth`."""

    def __init__(self, scene: Scene):
        self.scene = lambda index: scene


def test_texts_are_true_of_their_pictures(pairs):
    for pair in pairs[:500]:
        assert all(
            holds(read(text), *truth(Told(scene), 0)) for scene, text in zip(pair.scenes, pair.texts, strict=True)
        )


def test_labels_are_balanced_and_one_product_alone_tells_nothing(pairs):
    labels = [pair.same for pair in pairs]
    assert 0.47 < np.mean(labels) < 0.53
    for side in (0, 1):
        for feature in (
            [len(pair.scenes[side].objects) for pair in pairs],
            [tuple(sorted(thing.size for thing in pair.scenes[side].objects)) for pair in pairs],
            [tuple(sorted(thing.texture for thing in pair.scenes[side].objects)) for pair in pairs],
            [len(pair.texts[side].split()) for pair in pairs],
        ):
            assert best_guess(feature, labels) < 0.55


def test_one_pair_in_eight_lacks_a_part_whatever_its_class(source, pairs):
    lacking = Counter(part for pair in pairs for part in pair.absent)
    assert set(lacking) == set(PARTS) and 0.10 < sum(lacking.values()) / len(pairs) < 0.15
    assert best_guess([pair.absent for pair in pairs], [pair.same for pair in pairs]) < 0.55
    index = next(i for i, pair in enumerate(pairs) if pair.absent == ("text2",))
    example = source[index]
    assert example["absent"] == ["text2"] and example["label"] == int(pairs[index].same)
    assert example.keys() == {"id", "image", "captions", "image2", "text2", "label", "absent"}


def test_large_objects_never_overlap(pairs):
    for scene in itertools.chain.from_iterable(pair.scenes for pair in pairs[:500]):
        for a, b in itertools.combinations([thing.box(64) for thing in scene.objects], 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
