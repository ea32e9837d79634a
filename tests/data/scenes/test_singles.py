"""Scenes of one object: their classes are what the picture shows, and the novel pairs are novel."""

import numpy as np

from maskvlm_jax.data.scenes.singles import open_split
from maskvlm_jax.data.scenes.source import Scenes
from maskvlm_jax.data.scenes.world import COLOURS, NOVEL_KINDS, SHAPES
from tests.data.scenes.test_scenes import holds, read

DATA = {"scenes_seed": 0}


def test_there_is_one_object_and_its_classes_and_captions_are_true():
    singles = open_split(DATA, "test", image_size=32)
    for index in range(100):
        example = singles[index]
        (thing,) = example["objects"]
        assert (example["shape"], example["colour"]) == (thing["shape"], thing["colour"])
        assert example["name"] == f"{thing['colour']} {thing['shape']}" and example["id"] == singles.id(index)
        assert all(holds(read(caption), [thing], example["background"]) for caption in example["captions"])
        assert singles.captions(index) == example["captions"]


def test_novel_pairs_are_in_novel_alone_and_every_class_is_there():
    for split, novel in (("train", False), ("novel", True)):
        singles = open_split(DATA, split, image_size=32)
        looks = {tuple(singles[index]["name"].split()) for index in range(600)}
        assert all((one in NOVEL_KINDS) == novel for one in looks)
        assert {colour for colour, _ in looks} == set(COLOURS) and {shape for _, shape in looks} == set(SHAPES)


def test_they_are_scenes_of_their_own():
    singles, scenes = open_split(DATA, "test", image_size=32), Scenes(split="test", image_size=32)
    assert singles.fingerprint != scenes.fingerprint and singles.id(3) != scenes.id(3)
    assert not any(np.array_equal(singles[index]["image"], scenes[index]["image"]) for index in range(20))
    np.testing.assert_array_equal(open_split(DATA, "test", image_size=32)[3]["image"], singles[3]["image"])
