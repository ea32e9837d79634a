"""The true caption of a swap is true, the false one false, and words alone do not tell them apart."""

import itertools
from collections import Counter

import numpy as np
import pytest

from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.data.scenes.source import SPLIT_LENGTHS, Scenes
from maskvlm_jax.data.scenes.swaps import KINDS, Swaps, open_split
from maskvlm_jax.data.scenes.world import NOVEL_KINDS
from tests.data.scenes.test_scenes import holds, read, truth

COUNT = 600


@pytest.fixture(scope="module")
def swaps():
    return Swaps(split="train", image_size=32)


@pytest.mark.parametrize("split", SPLIT_LENGTHS)
def test_the_first_caption_is_true_and_the_second_false_of_the_same_words(split):
    swaps = Swaps(split=split, image_size=32)
    for index in range(COUNT // 2):
        true, false = swaps.captions(index)
        objects, background = truth(swaps, index)
        assert holds(read(true), objects, background) and not holds(read(false), objects, background), (true, false)
        assert sorted(true.split()) == sorted(false.split()) and len(objects) == 2


def test_kinds_take_turns_and_say_what_is_swapped(swaps):
    for index in range(50):
        example = swaps[index]
        assert example["kind"] == KINDS[index % 5] == example["id"].split("-")[0]
        assert example["family"] == ("" if example["kind"] == "swap_relation" else "swap_attribute")
        true, false = (read(caption) for caption in example["captions"])
        key = example["kind"].removeprefix("swap_")
        if key == "relation":
            assert (true.relations, false.mentions) == (false.relations, true.mentions[::-1])
            continue
        (first, second), (other, another) = true.mentions, false.mentions
        assert (other[key], another[key]) == (second[key], first[key]) and first[key] != second[key]
        assert {**other, key: first[key]} == first and {**another, key: second[key]} == second


def test_colours_and_shapes_of_false_captions_are_known_from_training(swaps):
    for index in range(COUNT):
        for caption in swaps.captions(index):
            assert not {(one["colour"], one["shape"]) for one in read(caption).mentions} & set(NOVEL_KINDS)


def features(caption: str) -> Counter:
    """Words, pairs of neighbours, and words by their place: what a reader of the text alone could go by."""
    words = ["^", *caption.split(), "$"]
    placed = [f"{place} {word}" for place, word in enumerate(words)]
    return Counter([*words, *map(" ".join, itertools.pairwise(words)), *placed])


@pytest.mark.parametrize("kind", range(5))
def test_text_alone_guesses_near_chance(swaps, kind):
    pairs = [swaps.captions(index) for index in range(kind, 5 * 2_400 + kind, 5)]
    learned, tested = pairs[:1_800], pairs[1_800:]
    seen = [Counter(), Counter()]
    for pair in learned:
        for counts, caption in zip(seen, pair, strict=True):
            counts.update(features(caption))

    def score(caption: str) -> float:  # naive Bayes
        return sum(
            count * (np.log(seen[0][one] + 1) - np.log(seen[1][one] + 1)) for one, count in features(caption).items()
        )

    right = np.mean([score(true) > score(false) for true, false in tested])
    assert abs(right - 0.5) < 0.07  # three standard deviations are 0.061


def test_no_caption_is_cut_in_the_smallest_model(swaps, tmp_path):
    scenes = Scenes(split="train")
    trained = tokenizers.train_wordpiece((caption for index in range(1_000) for caption in scenes.captions(index)), 256)
    tokenizers.save(trained, tmp_path / "tokenizer")
    tokenizer = tokenizers.load(tmp_path / "tokenizer")
    for index in range(COUNT):
        for caption in swaps.captions(index):
            assert not tokenizer.encode(caption, 21)[2][-1], caption


def test_an_example_is_a_function_of_seed_split_and_index(swaps):
    again = open_split({"scenes_seed": 0}, "train", image_size=32)
    np.testing.assert_array_equal(again[7]["image"], swaps[7]["image"])
    assert again[7]["captions"] == swaps.captions(7) == swaps[7]["captions"]
    others = [Swaps(split="val", image_size=32), Swaps(split="train", image_size=32, seed=1)]
    assert all(other.captions(7) != swaps.captions(7) for other in others)
    prints = {one.fingerprint for one in (swaps, *others, Scenes(split="train", image_size=32))}
    assert len(prints) == 4 and again.fingerprint == swaps.fingerprint
    assert not np.array_equal(swaps[7]["image"], Scenes(split="train", image_size=32)[7]["image"])
