"""RandAugment's operations against Pillow, shifts and geometry."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from maskvlm_jax.data import rand_augment as ra
from maskvlm_jax.data.rand_augment import rand_augment

SIDES = (60, 90)  # height, width


def noisy_picture(seed: int = 0, low: int = 30, high: int = 200) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (*SIDES, 3), dtype=np.uint8)


@pytest.mark.parametrize("seed", range(3))
def test_colour_operations_equal_pillow(seed: int) -> None:
    picture = noisy_picture(seed, low=10 + 40 * seed, high=220)
    image = Image.fromarray(picture)
    np.testing.assert_array_equal(ra.auto_contrast(picture), np.asarray(ImageOps.autocontrast(image)))
    np.testing.assert_array_equal(ra.equalize(picture), np.asarray(ImageOps.equalize(image)))
    for factor in (0.1, 1.0, 1.36, 1.9):
        np.testing.assert_array_equal(
            ra.brightness(picture, factor), np.asarray(ImageEnhance.Brightness(image).enhance(factor))
        )
        # Pillow rounds the smoothed copy and truncates the blend; here one filter does both and rounds once. The
        # smoothed copy's half a level is amplified by |1 - factor| < 1 and truncation takes less than a level.
        sharpened = np.asarray(ImageEnhance.Sharpness(image).enhance(factor)).astype(int)
        assert np.abs(ra.sharpness(picture, factor) - sharpened).max() <= 1


def test_colour_operations_on_flat_and_tiny_pictures() -> None:
    for shape in ((8, 8, 3), (1, 1, 3), (2, 5, 3)):
        flat = np.full(shape, 77, np.uint8)
        for operation in (ra.auto_contrast, ra.equalize, lambda picture: ra.sharpness(picture, 1.9)):
            np.testing.assert_array_equal(operation(flat), flat)


def test_translations_move_and_fill_with_grey() -> None:
    picture = noisy_picture()
    right, up = ra.translate_x(picture, 9 / 90), ra.translate_y(picture, -6 / 60)
    np.testing.assert_array_equal(right[:, 9:], picture[:, :-9])
    np.testing.assert_array_equal(up[:-6], picture[6:])
    assert (right[:, :9] == 128).all() and (up[-6:] == 128).all()


def test_shears_move_in_proportion_to_the_distance() -> None:
    picture = noisy_picture()
    # With slope 1/2 every second row (column) moves by a whole number of pixels, which interpolation leaves exact.
    along_x, along_y = ra.shear_x(picture, 0.5), ra.shear_y(picture, 0.5)
    for distance in (0, 2, 20, 40):
        shift = distance // 2
        np.testing.assert_array_equal(along_x[distance, shift:], picture[distance, : 90 - shift])
        np.testing.assert_array_equal(along_y[shift:, distance], picture[: 60 - shift, distance])
        assert (along_x[distance, :shift] == 128).all() and (along_y[:shift, distance] == 128).all()


def test_rotation_is_about_the_centre() -> None:
    square = noisy_picture()[:, :60]
    np.testing.assert_array_equal(ra.rotate(square, 90), np.rot90(square))
    np.testing.assert_array_equal(ra.rotate(noisy_picture(), 180), np.rot90(noisy_picture(), 2))
    assert (ra.rotate(square, 21)[0, 0] == 128).all()


def test_operations_at_magnitude_zero_and_their_strengths() -> None:
    picture = noisy_picture()
    for name in ("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"):
        np.testing.assert_array_equal(ra.OPERATIONS[name](picture, 0.0, 1), picture)
    np.testing.assert_array_equal(ra.OPERATIONS["Brightness"](picture, 0.5, -1), picture)
    np.testing.assert_array_equal(ra.OPERATIONS["Rotate"](picture, 0.7, -1), ra.rotate(picture, -21.0))
    np.testing.assert_array_equal(ra.OPERATIONS["ShearY"](picture, 0.7, 1), ra.shear_y(picture, 0.21))
    shifted = ra.OPERATIONS["TranslateX"](noisy_picture()[:, :64], 0.8, 1)  # 8 / 256 of 64 pixels
    np.testing.assert_array_equal(shifted[:, 2:], noisy_picture()[:, :62])


def test_operations_leave_their_argument_as_it_was() -> None:
    picture = noisy_picture()
    for operation in ra.OPERATIONS.values():
        result = operation(picture, 0.7, 1)
        assert result.shape == picture.shape and result.dtype == np.uint8
        np.testing.assert_array_equal(picture, noisy_picture())


def test_rand_augment_is_a_function_of_the_seed() -> None:
    picture = noisy_picture()
    results = [rand_augment(picture, np.random.default_rng(seed)) for seed in range(60)]
    again = [rand_augment(picture, np.random.default_rng(seed)) for seed in range(60)]
    np.testing.assert_array_equal(results, again)
    assert len({result.tobytes() for result in results}) > 20


def test_rand_augment_applies_each_operation_half_the_time() -> None:
    picture, rng = noisy_picture(), np.random.default_rng(0)
    unchanged = np.mean([rand_augment(picture, rng) is picture for _ in range(2000)])
    # Each of two draws leaves the picture alone with probability 1/2 + 1/2 * 1/10 (Identity).
    assert abs(unchanged - 0.55**2) < 0.04
    assert rand_augment(picture, rng, num_ops=0) is picture
