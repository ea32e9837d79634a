"""Pictures are cut into patches row by row, and hidden patches cannot be seen."""

import math

import numpy as np
import pytest

from maskvlm_jax.models.vision import patchify, sincos_positions, unpatchify
from tests.reference import numpy_losses, toy


@pytest.mark.parametrize(("height", "width", "patch"), [(8, 8, 4), (6, 6, 2), (4, 8, 4)])
def test_patchify_is_the_naive_cutting(height, width, patch):
    image = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    np.testing.assert_array_equal(patchify(image, patch), numpy_losses.patchify(image, patch))


def test_unpatchify_undoes_patchify():
    image = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    np.testing.assert_array_equal(unpatchify(patchify(image, 4), 4), image)


def test_positions_are_sines_and_cosines_of_row_and_column():
    side, width = 3, 8
    expected = np.zeros((side * side, width))
    for row in range(side):
        for column in range(side):
            for half, place in enumerate((row, column)):
                for k in range(width // 4):
                    angle = place / 10_000 ** (k / (width // 4))
                    expected[row * side + column, half * width // 2 + k] = math.sin(angle)
                    expected[row * side + column, half * width // 2 + width // 4 + k] = math.cos(angle)
    np.testing.assert_allclose(sincos_positions(side, width), expected, atol=1e-6)


def test_pixels_of_hidden_patches_do_not_change_the_encoding():
    encoder, batch = toy.pretrainer().vlm.image_encoder, toy.batch()
    patches = np.array(patchify(batch["image"], toy.PATCH))
    patches[batch["image_masked"]] = 1e3
    hidden = encoder(unpatchify(patches, toy.PATCH), batch["image_masked"])
    np.testing.assert_array_equal(hidden, encoder(batch["image"], batch["image_masked"]))


def test_a_mask_without_a_hidden_patch_is_no_mask():
    encoder, batch = toy.pretrainer().vlm.image_encoder, toy.batch()
    nothing = np.zeros_like(batch["image_masked"])
    np.testing.assert_array_equal(encoder(batch["image"], nothing), encoder(batch["image"]))


def test_text_encoding_of_a_token_does_not_depend_on_padding():
    encoder, batch = toy.pretrainer().vlm.text_encoder, toy.batch()
    valid = batch["token_valid"]
    other = np.where(valid, batch["tokens"], toy.VOCAB - 1)
    encoded, again = (np.asarray(encoder(tokens, valid)) for tokens in (batch["tokens"], other))
    np.testing.assert_array_equal(encoded[valid], again[valid])
