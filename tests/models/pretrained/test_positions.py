"""Positions of another grid are those of PyTorch's interpolation."""

import cv2
import numpy as np
import pytest

from maskvlm_jax.models.pretrained import positions

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("old", "new"), [(4, 6), (37, 16), (14, 24), (8, 4)])
def test_they_are_opencvs_bicubic_which_is_pytorchs(old, new):
    grid = RNG.normal(size=(old, old, 4)).astype(np.float32)
    first = RNG.normal(size=(2, 4)).astype(np.float32)
    resized = positions.resize(np.concatenate([first, grid.reshape(-1, 4)]), 2, new)
    np.testing.assert_array_equal(resized[:2], first)
    expected = cv2.resize(grid, (new, new), interpolation=cv2.INTER_CUBIC).reshape(-1, 4)
    np.testing.assert_allclose(resized[2:], expected, atol=3e-6)


def test_an_equal_grid_is_left_alone():
    grid = RNG.normal(size=(17, 3)).astype(np.float32)
    assert positions.resize(grid, 1, 4) is grid
