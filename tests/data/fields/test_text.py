"""A second text, and pictures and texts that are absent or that modality dropout takes."""

import numpy as np
import pytest

from maskvlm_jax.data import batch as batches
from maskvlm_jax.data.scenes.source import Scenes
from maskvlm_jax.data.sources.base import Listed
from maskvlm_jax.runtime.errors import UserError
from tests.data.streaming import make_tokenizer
from tests.data.test_fields import config_with, drawn, read

MORE = {"picture2": {"name": "picture", "key": "image2"}, "text2": {"name": "text"}}
KEYS = ("image", "captions", "image2", "text2")


class Products(Listed):
    """Four pairs of a picture and a text; number i lacks the i-th part where `absent`."""

    def __init__(self, absent=False):
        self._scenes = Scenes(split="train", image_size=32, length=8)
        more = {"image2": [self._scenes[4 + i]["image"] for i in range(4)]}
        more["text2"] = [self._scenes.captions(4 + i)[0] for i in range(4)]
        if absent:
            more["absent"] = [[key] for key in KEYS]
        super().__init__([f"p{i}" for i in range(4)], [self._scenes.captions(i)[:1] for i in range(4)], **more)

    def image(self, index):
        return self._scenes[index]["image"]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(Scenes(split="train", image_size=32, length=8))


def parts_of(arrays):
    """Which of the four parts of a pair say nothing, by the arrays that were made of them."""
    nothing = {
        "image": np.all(arrays["image"] == batches.MEAN_COLOUR),
        "captions": arrays["token_valid"].sum() == 2,
        "image2": np.all(arrays["picture2"] == batches.MEAN_COLOUR),
        "text2": arrays["text2_valid"].sum() == 2,
    }
    return {key for key, is_nothing in nothing.items() if is_nothing}


def test_a_second_text_is_encoded_as_the_first_one_is(tokenizer):
    source = Products()
    found = drawn(config_with(MORE), source, tokenizer, element=1)
    tokens, _, valid = tokenizer.encode(source[1]["text2"], len(found["tokens"]))
    np.testing.assert_array_equal(found["text2_tokens"], tokens)
    np.testing.assert_array_equal(found["text2_valid"], valid)
    data = read(source, tokenizer, MORE)
    np.testing.assert_array_equal(data.batch(np.array([1]), np.array([1]), np.ones(1, bool))["text2_tokens"][0], tokens)


def test_what_is_no_text_is_named(tokenizer):
    with pytest.raises(UserError, match=r"p1 has no text 'text3', which data\.fields\.other reads"):
        drawn(config_with({"other": {"name": "text", "key": "text3"}}), Products(), tokenizer, element=1)


@pytest.mark.parametrize("index", range(4))
def test_what_is_absent_is_the_mean_colour_or_no_word_in_training_and_in_evaluation(tokenizer, index):
    whole, source = Products(), Products(absent=True)
    for dropout in (0.0, 1.0):
        found = drawn(config_with(MORE, data__modality_dropout=dropout), source, tokenizer, element=index)
        assert parts_of(found) == {KEYS[index]}, "what is left is not dropped"
    scored = read(source, tokenizer, MORE).batch(np.arange(4), np.arange(4), np.ones(4, bool))
    expected = read(whole, tokenizer, MORE).batch(np.arange(4), np.arange(4), np.ones(4, bool))
    assert parts_of({name: value[index] for name, value in scored.items()}) == {KEYS[index]}
    others = set(scored) - {"image", "picture2"} if index % 2 == 0 else {"image", "picture2"}
    for name in others:
        np.testing.assert_array_equal(scored[name][index], expected[name][index], err_msg=name)


def test_no_word_is_read_in_the_place_of_absent_captions_as_modality_dropout_leaves_them(tokenizer):
    absent = drawn(config_with(MORE), Products(absent=True), tokenizer, element=1)
    plain = drawn(config_with(MORE), Products(), tokenizer, element=1)
    dropped = batches.without_words(plain)
    np.testing.assert_array_equal(absent["token_valid"], dropped["token_valid"])
    for name, value in dropped.items():
        np.testing.assert_array_equal(absent[name][:2], value[:2], err_msg=name)


def test_dropout_takes_a_modality_of_both_pairs_or_nothing(tokenizer):
    config, source = config_with(MORE, data__modality_dropout=0.6), Products()
    lost = [frozenset(parts_of(drawn(config, source, tokenizer, element=2, seed=seed))) for seed in range(200)]
    pictures, texts = frozenset({"image", "image2"}), frozenset({"captions", "text2"})
    assert set(lost) == {frozenset(), pictures, texts}
    assert 40 < lost.count(pictures) < 80 and 40 < lost.count(texts) < 80
