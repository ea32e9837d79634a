"""The masked token loss is the naive mean of the cross entropy over masked tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskvlm_jax.objectives.masked_text import masked_token_loss
from tests.objectives.means import mean
from tests.reference import numpy_losses

VALID = {
    "all": np.ones((3, 4), bool),
    "uneven": np.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool),
    "batch of one": np.array([[1, 0, 1, 0]], bool),
    "none": np.zeros((3, 4), bool),
}


def inputs(valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = 4 * rng.normal(size=(*valid.shape, 7))
    return logits.astype(np.float32), rng.integers(0, 7, valid.shape).astype(np.int32)


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mean_loss_is_the_naive_mean_over_masked_tokens(name, dtype):
    logits, target = inputs(VALID[name])
    logits = jnp.asarray(logits, dtype)
    value = masked_token_loss(logits, target)
    assert value.dtype == jnp.float32
    expected = numpy_losses.masked_token_cross_entropy(np.asarray(logits, np.float32), target, VALID[name])
    np.testing.assert_allclose(mean(value, VALID[name]), expected, rtol=1e-5)


@pytest.mark.parametrize("name", VALID)
def test_gradient_is_finite_and_only_at_masked_tokens(name):
    logits, target = inputs(VALID[name])
    grad = np.asarray(jax.grad(lambda x: mean(masked_token_loss(x, target), VALID[name]))(logits))
    assert np.all(np.isfinite(grad))
    np.testing.assert_array_equal(np.any(grad, axis=-1), VALID[name])


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_loss_is_finite_at_extreme_logits(scale):
    logits = np.full((1, 1, 3), 0.0, np.float32)
    logits[..., 1] = scale
    target, valid = np.zeros((1, 1), np.int32), np.ones((1, 1), bool)
    loss = float(mean(masked_token_loss(logits, target), valid))
    np.testing.assert_allclose(loss, numpy_losses.masked_token_cross_entropy(logits, target, valid), rtol=1e-6)
