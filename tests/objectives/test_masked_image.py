"""The masked pixel loss is the naive mean over masked pixels and channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskvlm_jax.objectives.masked_image import masked_patch_target, masked_pixel_loss
from tests.objectives.means import mean
from tests.reference import numpy_losses


def inputs(valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(*valid.shape, 12)).astype(np.float32) for _ in range(2))


VALID = {
    "all": np.ones((3, 4), bool),
    "uneven": np.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool),
    "batch of one": np.array([[1, 0, 1, 0]], bool),
    "none": np.zeros((3, 4), bool),
}


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("norm", "power"), [("l1", 1), ("l2", 2)])
def test_mean_loss_is_the_naive_mean_over_masked_pixels(name, dtype, norm, power):
    pred, target = inputs(VALID[name])
    pred = jnp.asarray(pred, dtype)
    value = masked_pixel_loss(pred, target, norm=norm)
    assert value.dtype == jnp.float32
    assert value.shape == VALID[name].shape
    expected = numpy_losses.masked_pixel_error(np.asarray(pred, np.float32), target, VALID[name], power)
    np.testing.assert_allclose(mean(value, VALID[name]), expected, rtol=1e-5)


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_gradient_is_finite_and_only_at_masked_patches(name, norm):
    pred, target = inputs(VALID[name])
    grad = np.asarray(jax.grad(lambda p: mean(masked_pixel_loss(p, target, norm=norm), VALID[name]))(pred))
    assert np.all(np.isfinite(grad))
    np.testing.assert_array_equal(np.any(grad, axis=-1), VALID[name])


def test_target_is_the_pixels_of_the_named_patches():
    image = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    ids = np.array([[3, 0], [1, 2]], np.int32)
    patches = numpy_losses.patchify(image, 4)
    np.testing.assert_array_equal(masked_patch_target(image, ids, 4), np.stack([patches[b][ids[b]] for b in range(2)]))
