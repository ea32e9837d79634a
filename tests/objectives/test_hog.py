"""Histograms of gradients are those of the paper's equations, pixel by pixel, and tell edges apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskvlm_jax.data.scenes.source import Scenes
from maskvlm_jax.objectives import hog
from tests.reference import numpy_hog

RNG = np.random.default_rng(0)


# A scene has flat grounds and edges along the axes, whose angles lie between two bins.
SCENE = Scenes(split="train", image_size=32, length=8)[0]["image"][None]
PICTURES = {"noise": RNG.normal(size=(2, 16, 24, 3)).astype(np.float32), "scene": SCENE}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("cell", [4, 8])
def test_histograms_are_those_of_a_loop_over_pixels(name, cell):
    image = PICTURES[name]
    found = jax.jit(hog.histograms, static_argnums=1)(image, cell)
    assert found.dtype == jnp.float32
    expected = np.stack([numpy_hog.histograms(one, cell) for one in image])
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_weak_histograms_stay_weak_where_a_least_length_is_given():
    found = np.asarray(hog.histograms(SCENE, 8, 1_000))
    np.testing.assert_allclose(found[0], numpy_hog.histograms(SCENE[0], 8, 1_000), atol=2e-5)
    length = np.linalg.norm(found, axis=-1)
    assert length.min() < 0.5 and length.max() == pytest.approx(1)


@pytest.mark.parametrize(("patch", "cell"), [(8, 8), (8, 4), (4, 4)])
def test_a_patch_has_the_histograms_of_its_cells_row_by_row(patch, cell):
    image = PICTURES["noise"]
    expected = np.stack([numpy_hog.of_patches(one, patch, cell) for one in image])
    found = hog.of_patches(image, patch=patch, cell=cell)
    assert found.shape == (2, 16 * 24 // patch**2, 27 * (patch // cell) ** 2)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_bins_are_the_paper_s_also_along_the_axes():
    angles = np.arange(0, 360, 5)
    directions = [(np.sin(a), np.cos(a)) for a in np.deg2rad(angles[angles % 20 != 0])]
    directions += [(0.0, 1.0), (0.0, -1.0), (1.0, 0.0), (-1.0, 0.0), (-0.0, -1.0), (-0.0, 1.0)]
    gx, gy = np.array(directions, np.float32).T
    expected = [numpy_hog.bin_of(*direction) for direction in directions]
    np.testing.assert_array_equal(jax.jit(hog.bins)(gx, gy), expected)
    np.testing.assert_array_equal(hog.bins(gx, gy)[-6:], [0, 0, 4, 4, 0, 0])


def test_a_picture_of_one_colour_has_nothing_and_all_others_length_one():
    flat = np.full((1, 16, 16, 3), 0.37, np.float32)
    assert not np.any(hog.histograms(flat, 8))
    half = np.where(np.arange(16) < 8, PICTURES["noise"][:1, :, :16].transpose(0, 1, 3, 2), 0.5).transpose(0, 1, 3, 2)
    length = np.linalg.norm(hog.histograms(half, 4), axis=-1)
    np.testing.assert_allclose(length[:, :, :3], 1, rtol=1e-5)
    assert not np.any(length[:, :, 3])


def test_edges_of_two_directions_fall_into_different_bins():
    across = np.zeros((1, 16, 16, 1), np.float32)
    across[:, :, 6:] = 1.0
    told = [np.unique(np.nonzero(np.asarray(hog.histograms(x, 8)))[-1]) for x in (across, across.swapaxes(1, 2))]
    assert [bins.tolist() for bins in told] == [[4], [0]]


def test_brightness_and_contrast_change_nothing():
    image = PICTURES["noise"]
    plain = hog.histograms(image, 8)
    np.testing.assert_allclose(hog.histograms(image + np.float32([1, -2, 3]), 8), plain, atol=1e-4)
    np.testing.assert_allclose(hog.histograms(image * np.float32([1, 2, 3]), 8), plain, atol=1e-6)
