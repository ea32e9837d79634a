"""The contrastive loss is the naive one, and stays finite where nothing is left to push away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.models.vlm import TEMPERATURE_RANGE, VLM
from maskvlm_jax.objectives.context import Context
from maskvlm_jax.objectives.contrastive import contrastive_loss
from maskvlm_jax.training import build
from maskvlm_jax.training.train_step import split_model
from tests.conftest import toy_config
from tests.reference import numpy_losses, toy

PAIRS = {
    "all different": [(0, 10), (1, 11), (2, 12), (3, 13), (4, 14)],
    "a picture twice": [(0, 10), (0, 11), (2, 12), (3, 13), (4, 14)],
    "a caption twice": [(0, 10), (1, 11), (2, 10), (3, 13), (4, 14)],
    "a chain": [(0, 10), (0, 11), (2, 11), (2, 13), (4, 14)],
    "all the same": [(0, 10)] * 5,
    "batch of one": [(0, 10)],
}


def inputs(name: str) -> tuple[np.ndarray, np.ndarray]:
    same = numpy_losses.same_pair(np.array(PAIRS[name]))
    similarity = np.random.default_rng(0).normal(size=same.shape) * 5
    return similarity.astype(np.float32), same


@pytest.mark.parametrize("name", PAIRS)
def test_loss_is_the_naive_sum_of_both_directions(name):
    similarity, same = inputs(name)
    np.testing.assert_allclose(
        contrastive_loss(similarity, same), numpy_losses.contrastive(similarity, same), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", PAIRS)
def test_with_all_positives_a_target_is_shared_evenly_among_those_that_belong_together(name):
    similarity, same = inputs(name)
    loss, grad = jax.value_and_grad(lambda s: contrastive_loss(s, same, "all").sum())(similarity)
    np.testing.assert_allclose(loss, numpy_losses.contrastive_to_all(similarity, same).sum(), rtol=1e-5)
    # softmax minus target, of both directions
    target = same / same.sum(axis=1, keepdims=True) + same / same.sum(axis=0, keepdims=True)
    expected = jax.nn.softmax(similarity, axis=1) + jax.nn.softmax(similarity, axis=0) - target
    np.testing.assert_allclose(grad, expected, atol=1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_same_pairs_are_found_by_picture_and_by_caption(name):
    ids = np.array(PAIRS[name], np.int32)
    ctx = Context(None, {"pair_id": jnp.asarray(ids)}, masked_patch_count=1, text_ratio=0.5, views={})
    np.testing.assert_array_equal(ctx.same_pair_BB, numpy_losses.same_pair(ids))


@pytest.mark.parametrize("name", ["all the same", "batch of one"])
def test_without_a_negative_loss_and_gradient_are_zero(name):
    similarity, same = inputs(name)
    loss, grad = jax.value_and_grad(lambda s: contrastive_loss(s, same).sum())(similarity)
    np.testing.assert_allclose(loss, 0.0, atol=1e-5)
    np.testing.assert_allclose(grad, 0.0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_loss_and_gradient_are_finite_at_extreme_similarities(scale):
    same = np.eye(3, dtype=bool)
    similarity = (scale * np.eye(3)).astype(np.float32)
    loss, grad = jax.value_and_grad(lambda s: contrastive_loss(s, same).sum())(similarity)
    np.testing.assert_allclose(loss, numpy_losses.contrastive(similarity, same).sum(), rtol=1e-6)
    assert np.all(np.isfinite(grad))


def test_entries_of_the_same_pair_get_no_gradient():
    similarity, same = inputs("a chain")
    grad = np.asarray(jax.grad(lambda s: contrastive_loss(s, same).sum())(similarity))
    own = np.eye(len(same), dtype=bool)
    assert np.all(grad[same & ~own] == 0.0)
    assert np.all(grad[~same] > 0.0)
    assert np.all(grad[own] < 0.0)


def vlm_with(vlm: VLM, temperature: jax.Array) -> VLM:
    graphdef, params = split_model(vlm)
    return nnx.merge(graphdef, params | {"temperature": temperature})


@pytest.mark.parametrize("scale", ["log", "linear"])
@pytest.mark.parametrize("end", [0, 1])
def test_a_temperature_that_left_its_range_is_put_back_and_keeps_its_gradient(scale, end):
    vlm = toy.learner(more={"temperature_scale": scale}).vlm
    beyond = TEMPERATURE_RANGE[end] * (0.5, 2.0)[end]
    vlm.temperature[...] = jnp.float32(np.log(beyond) if scale == "log" else beyond)
    vlm.constrain()
    np.testing.assert_allclose(vlm.current_temperature(), TEMPERATURE_RANGE[end], rtol=1e-5)

    grad = jax.grad(lambda temperature: 1.0 / vlm_with(vlm, temperature).current_temperature())(vlm.temperature[...])
    assert np.abs(grad) > 0


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_the_temperature_starts_where_the_config_says(scale):
    arguments = build.model_arguments(toy_config(model__temperature_scale=scale))["model"]
    start = jax.jit(lambda: VLM(**arguments, rngs=nnx.Rngs(0)).current_temperature())
    np.testing.assert_allclose(start(), 0.07, rtol=1e-5)


def test_similarity_is_the_cosine_over_the_temperature():
    learner, batch = toy.learner(), toy.batch()
    ctx = learner.context(batch)
    vlm = learner.vlm
    image = np.asarray(vlm.image_projection(ctx.image("clean")[:, 0]), np.float64)
    text = np.asarray(vlm.text_projection(ctx.text("clean")[:, 0]), np.float64)
    for i, t in np.ndindex(4, 4):
        cosine = image[i] @ text[t] / np.linalg.norm(image[i]) / np.linalg.norm(text[t])
        np.testing.assert_allclose(ctx.similarity_BB[i, t], cosine / 0.5, rtol=1e-4, atol=1e-5)
