"""Pictures are cut into patches row by row, and hidden patches cannot be seen."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.models import positions
from maskvlm_jax.models.vision import patchify, unpatchify
from maskvlm_jax.models.vlm import VLM
from maskvlm_jax.training import build
from maskvlm_jax.training.train_step import split_model
from tests.conftest import toy_config
from tests.reference import numpy_losses, toy


@pytest.mark.parametrize(("height", "width", "patch"), [(8, 8, 4), (6, 6, 2), (4, 8, 4)])
def test_patchify_is_the_naive_cutting(height, width, patch):
    image = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    np.testing.assert_array_equal(patchify(image, patch), numpy_losses.patchify(image, patch))


def test_unpatchify_undoes_patchify():
    image = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    np.testing.assert_array_equal(unpatchify(patchify(image, 4), 4), image)


def naive_waves(length: int, width: int) -> np.ndarray:
    """Sines, then cosines, of wavelengths from 4 to 4 times the length, evenly spaced in their logarithm; centred."""
    count = width // 2
    result = np.zeros((length, width))
    for place in range(length):
        for k in range(count):
            wavelength = 4 * length ** (k / (count - 1))
            result[place, k] = math.sin(2 * math.pi * place / wavelength)
            result[place, count + k] = math.cos(2 * math.pi * place / wavelength)
    result -= result.mean(axis=0)
    return result / math.sqrt(np.mean(result**2))


@pytest.mark.parametrize("length", [2, 3, 20])
def test_positions_of_words_are_centred_sines_and_cosines(length):
    np.testing.assert_allclose(positions.waves(length, 8), naive_waves(length, 8), atol=1e-5)


def test_positions_of_patches_are_those_of_row_and_column():
    rows = naive_waves(3, 4)
    expected = [np.concatenate([rows[row], rows[column]]) for row in range(3) for column in range(3)]
    np.testing.assert_allclose(positions.grid_waves(3, 8), expected, atol=1e-5)


@pytest.mark.parametrize("width", [9, 10, 11])
def test_any_width_has_positions_and_a_single_one_is_zero(width):
    assert positions.waves(5, width).shape == (5, width) and positions.grid_waves(2, width).shape == (4, width)
    np.testing.assert_array_equal(positions.waves(1, width), 0.0)


@pytest.mark.parametrize("side", [3, 6, 14])
def test_no_two_patches_start_alike(side):
    unit = numpy_losses.unit(positions.grid_waves(side, 128))
    assert np.max((unit @ unit.T)[~np.eye(side**2, dtype=bool)]) < 0.95


def test_encoders_from_scratch_start_from_waves_as_large_as_what_they_are_added_to():
    model = build.model_arguments(toy_config())["model"]
    vlm = jax.jit(lambda: split_model(VLM(**model, rngs=nnx.Rngs(0)))[1])()
    text, image = (np.asarray(vlm[f"{name}_encoder"]["position"])[0] for name in ("text", "image"))
    np.testing.assert_allclose(text, 0.02 * positions.waves(*text.shape), atol=1e-6)
    np.testing.assert_allclose(image[1:], positions.grid_waves(4, image.shape[1]) / 2**0.5, atol=1e-6)


def test_the_paper_s_encoders_start_from_random_positions():
    model = build.model_arguments(toy_config(model__shared__init_std=0.02))["model"]
    vlm = jax.jit(lambda: split_model(VLM(**model, rngs=nnx.Rngs(0)))[1])()
    for name in ("text", "image"):
        position = np.asarray(vlm[f"{name}_encoder"]["position"])
        assert 0.015 < position.std() < 0.02  # a normal cut at two standard deviations
        assert np.max(np.abs(position)) < 0.05


def test_pixels_of_hidden_patches_do_not_change_the_encoding():
    encoder, batch = toy.learner().vlm.image_encoder, toy.batch()
    patches = np.array(patchify(batch["image"], toy.PATCH))
    patches[batch["image_masked"]] = 1e3
    hidden = encoder(unpatchify(patches, toy.PATCH), batch["image_masked"])
    np.testing.assert_array_equal(hidden, encoder(batch["image"], batch["image_masked"]))


def test_a_mask_without_a_hidden_patch_is_no_mask():
    encoder, batch = toy.learner().vlm.image_encoder, toy.batch()
    nothing = np.zeros_like(batch["image_masked"])
    np.testing.assert_array_equal(encoder(batch["image"], nothing), encoder(batch["image"]))


def test_text_encoding_of_a_token_does_not_depend_on_padding():
    encoder, batch = toy.learner().vlm.text_encoder, toy.batch()
    valid = batch["token_valid"]
    other = np.where(valid, batch["tokens"], toy.VOCAB - 1)
    encoded, again = (np.asarray(encoder(tokens, valid)) for tokens in (batch["tokens"], other))
    np.testing.assert_array_equal(encoded[valid], again[valid])
