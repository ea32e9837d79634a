"""Captions are assigned to pictures: by split and number alone, every label as often, no caption to a wrong picture."""

from collections import Counter

import numpy as np
import pytest

from configs import finetune
from maskvlm_jax.data import examples
from maskvlm_jax.data.sources import assignments
from maskvlm_jax.data.sources.base import Listed
from maskvlm_jax.data.sources.opening import open_source
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import rules


class Pictures(Listed):
    """Pictures of which every pixel is their number; some share a caption, and one has none."""

    fingerprint = "of pictures"

    def __init__(self, count: int):
        captions = [[f"picture {i // 2}", f"number {i}"] for i in range(count)]
        captions[-1] = []
        super().__init__([str(i) for i in range(count)], captions, place=list(range(count)))

    def image(self, index):
        return np.full((32, 32, 3), index, np.uint8)


def test_the_caption_is_that_of_the_picture_that_the_label_says():
    source = assignments.Assignments(Pictures(60), "train")
    labels = Counter()
    for index in range(59):
        example = source[index]
        own, (caption,) = Pictures(60).captions(index), example["captions"]
        shown = [int(example[name][0, 0, 0]) for name in ("image", "image2")]
        assert caption in own and shown[0] != shown[1] and example["place"] == index
        assert [number == index for number in shown] == [example["label"] == label for label in ("first", "second")]
        others = [number for number in shown if number != index]
        assert all(caption not in Pictures(60).captions(number) for number in others)
        assert source.captions(index) == [caption] and source.id(index) == str(index)
        assert source.facts(index).items() <= {key: x for key, x in example.items() if "image" not in key}.items()
        labels[example["label"]] += 1
    assert set(labels) == set(assignments.LABELS) and min(labels.values()) > 10
    assert source.captions(59) == [] and source[59]["captions"] == []  # another stands in its place


def test_another_split_is_drawn_otherwise_and_the_same_again_the_same():
    drawn = [
        [one.facts(i)["label"] for i in range(50)]
        for one in (
            assignments.Assignments(Pictures(60), "train"),
            assignments.Assignments(Pictures(60), "train"),
            assignments.Assignments(Pictures(60), "val"),
        )
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_where_every_picture_has_the_caption_one_is_taken_all_the_same():
    source = Listed(["a", "b", "c"], [["the same"]] * 3)
    source.image, source.fingerprint = lambda index: np.zeros((32, 32, 3), np.uint8), ""
    assert assignments.Assignments(source, "train")[0]["captions"] == ["the same"]
    with pytest.raises(UserError, match="the split 'val' has 2 pictures; at least three are needed"):
        assignments.Assignments(Pictures(2), "val")


def test_the_task_reads_any_captioned_set():
    config = finetune.get_config("task=text_assignment")
    rules.check(config)
    source = open_source(config.data.to_dict(), "test", 32)
    assert len(source) == 1000 and source[3]["label"] in assignments.LABELS
    assert examples.batch_shapes(config)["image2"] == examples.batch_shapes(config)["image"]
    assert finetune.get_config("task=text_assignment,data=flickr8k").data.of == "files"
    assert finetune.get_config("task=text_assignment,size=base,data=coco").epochs == 1.0
    with pytest.raises(ValueError, match="a mixture is not read by this task"):
        finetune.get_config("task=text_assignment,data=coco+vg")
