"""`explain` says which words of a text look where, of every recipe that can be asked."""

import numpy as np
import pytest
from PIL import Image

import maskvlm_jax
from maskvlm_jax.data.scenes.source import Scenes
from maskvlm_jax.evaluators import heat as heats
from maskvlm_jax.objectives.matching import PRIOR_LOG_ODDS
from tests.reference import exporting as exports


@pytest.fixture(scope="module")
def model():
    return maskvlm_jax.load(exports.FOLDER / "mamo", batch_size=8)


@pytest.fixture(scope="module")
def picture():
    return Scenes(split="test", image_size=32)[0]["image"]


def test_heat_is_of_the_words_and_over_the_picture(model, picture):
    found = model.explain(picture, "a red  square", layer=0)
    side = model.image_size // model.config.model.image.patch
    assert found["words"] == ["a", "red", "square"]
    assert found["grid"].shape == (side, side) and found["word_grid"].shape == (3, side, side)
    assert found["heat"].shape == (32, 32) and found["word_heat"].shape == (3, 32, 32)
    np.testing.assert_array_equal(found["word_heat"][1], heats.resized(found["word_grid"][1].reshape(-1), 32, 32))
    odds = 1 / (1 + np.exp(-(found["score"] - PRIOR_LOG_ODDS)))
    assert odds == pytest.approx(float(model.match(picture, "a red  square")), rel=1e-4)
    large = Image.fromarray(picture).resize((96, 64))
    assert model.explain(large, "a red square")["heat"].shape == (32, 32)


def test_a_word_of_several_tokens_is_one(model, picture):
    text = "ared \N{SNOWMAN} red"
    tokens = int(model.tokenizer.encode(text, model.max_length)[2].sum())
    assert tokens > 5 and model.explain(picture, text)["words"] == ["ared", "[UNK]", "red"]


def test_what_cannot_be_asked_is_said(model, picture):
    with pytest.raises(ValueError, match="there is no layer 9; give one from 0"):
        model.explain(picture, "a red square", layer=9)
    with pytest.raises(TypeError, match="list is no text"):
        model.explain(picture, ["a red square"])
    other = maskvlm_jax.load(exports.FOLDER / "mlim", batch_size=8)
    with pytest.raises(ValueError, match="has no heat over pictures: it needs a matching head"):
        other.explain(picture, "a red square")
