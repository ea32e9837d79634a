"""Pixels that are normalised by patch: the target, the loss, and what is shown of a prediction."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maskvlm_jax.models.layers import Positions
from maskvlm_jax.objectives import masked_normalised
from tests.objectives.means import mean_of
from tests.reference import numpy_losses, toy

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(0.3, 2.0, size=(2, 8, 8, 3)).astype(np.float32)  # four patches of 4 x 4 pixels
IDS = np.array([[3, 0], [1, 2]], np.int32)
VALID = np.array([[True, True], [True, False]])
MASKED = np.array([[1, 0, 0, 1], [0, 1, 1, 0]], bool)
FUSED = RNG.normal(size=(2, 2, 6)).astype(np.float32)
VLM = SimpleNamespace(image_encoder=SimpleNamespace(width=6, patch=4))


def objective():
    shared = toy.shared()
    return toy.randomised(lambda: masked_normalised.Objective(VLM, shared=shared, rngs=nnx.Rngs(0)))


def context(image=IMAGE, fused=FUSED):
    positions = Positions(jnp.asarray(IDS), jnp.asarray(VALID))
    read = {"clean": jnp.asarray(fused)}
    return SimpleNamespace(
        masked_patches=positions,
        pixels_BYXC=jnp.asarray(image),
        batch={"image_masked": MASKED},
        fuse_masked_patches=read.__getitem__,
    )


def test_the_target_has_mean_zero_and_unbiased_variance_one_in_every_patch():
    target = np.asarray(masked_normalised.normalised_patches(numpy_losses.patchify(IMAGE, 4)))
    np.testing.assert_allclose(target.mean(axis=-1), 0, atol=1e-6)
    np.testing.assert_allclose(target.var(axis=-1, ddof=1), 1, rtol=1e-5)
    flat = np.full((1, 1, 48), 0.7, np.float32)
    np.testing.assert_allclose(masked_normalised.normalised_patches(flat), 0, atol=1e-3)


def test_the_loss_is_the_naive_one_over_masked_patches():
    head = objective()
    kernel, bias = (np.asarray(x[...], np.float64) for x in (head.to_pixels.kernel, head.to_pixels.bias))
    target = numpy_losses.normalised_patches(numpy_losses.patchify(IMAGE, 4))
    wanted = np.stack([target[b][IDS[b]] for b in range(2)])
    expected = numpy_losses.masked_pixel_error(FUSED @ kernel + bias, wanted, VALID, 2)
    np.testing.assert_allclose(mean_of(head(context(), None)[0]), expected, rtol=1e-5)


def test_a_patch_that_is_brighter_or_has_more_contrast_has_the_same_target():
    head = objective()
    brighter = mean_of(head(context(3 * IMAGE + 5), None)[0])
    np.testing.assert_allclose(brighter, mean_of(head(context(), None)[0]), rtol=1e-5)


def test_the_gradient_flows_to_what_was_fused_of_masked_patches_alone():
    head = objective()
    gradient = np.asarray(jax.grad(lambda fused: mean_of(head(context(fused=fused), None)[0]))(jnp.asarray(FUSED)))
    np.testing.assert_array_equal(np.any(gradient, axis=-1), VALID)


def test_what_is_shown_has_the_brightness_of_the_visible_patches_around_and_knows_no_hidden_pixel():
    head = objective()
    shown, positions = head.predict(context())
    np.testing.assert_array_equal(positions.ids_BM, IDS)
    hidden = np.array(IMAGE)
    hidden[0, :4, :4], hidden[0, 4:, 4:], hidden[1, :4, 4:], hidden[1, 4:, :4] = 9, 9, 9, 9
    np.testing.assert_array_equal(head.predict(context(hidden))[0], shown)
    expected = np.asarray(head.to_pixels(jnp.asarray(FUSED)))
    patches = numpy_losses.patchify(IMAGE, 4)
    for b in range(2):
        seen = [n for n in range(4) if not MASKED[b, n]]
        for m, n in enumerate(IDS[b]):
            near = np.array([np.exp(-((n // 2 - k // 2) ** 2) - (n % 2 - k % 2) ** 2) for k in seen])
            near /= near.sum()
            mean = near @ [patches[b, k].mean() for k in seen]
            deviation = near @ [np.sqrt(patches[b, k].var(ddof=1) + 1e-6) for k in seen]
            np.testing.assert_allclose(shown[b, m], expected[b, m] * deviation + mean, rtol=1e-4, atol=1e-5)
