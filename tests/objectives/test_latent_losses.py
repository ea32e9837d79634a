"""The losses of MLIM, MAMO and ALBEF are the naive ones, and their gradients are finite."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskvlm_jax.models.vlm import normalize
from maskvlm_jax.objectives import distilled_masked_text, feature_queue, masked_text, momentum_contrastive
from maskvlm_jax.objectives.context import Context
from maskvlm_jax.objectives.distilled_masked_text import distillation_loss
from maskvlm_jax.objectives.masked_feature import masked_feature_loss
from maskvlm_jax.objectives.masked_representation import masked_representation_loss
from maskvlm_jax.objectives.momentum_contrastive import distilled_cross_entropy
from maskvlm_jax.objectives.reconstruction import reconstruction_loss
from tests.objectives.means import mean, mean_of
from tests.reference import numpy_losses

VALID = {
    "all": np.ones((3, 4), bool),
    "uneven": np.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool),
    "none": np.zeros((3, 4), bool),
}
LOSSES = {
    "reconstruction": (reconstruction_loss, numpy_losses.reconstruction),
    "masked_feature": (masked_feature_loss, lambda *x: numpy_losses.vector_distance(*x, power=1) / 12**0.5),
    "masked_representation": (masked_representation_loss, lambda *x: numpy_losses.vector_distance(*x, power=2)),
    "distillation": (distillation_loss, numpy_losses.soft_cross_entropy),
}


def pair(valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(*valid.shape, 12)).astype(np.float32) for _ in range(2))


@pytest.mark.parametrize("mask", VALID)
@pytest.mark.parametrize("name", LOSSES)
def test_mean_loss_is_the_naive_mean_over_what_counts(name, mask):
    loss, oracle = LOSSES[name]
    pred, target = pair(VALID[mask])
    value = loss(pred, target)
    assert value.shape == VALID[mask].shape
    np.testing.assert_allclose(mean(value, VALID[mask]), oracle(pred, target, VALID[mask]), rtol=1e-5)


@pytest.mark.parametrize("width", [128, 768])
def test_unrelated_features_are_as_far_apart_at_every_width(width):
    # sum |x| / sqrt(D) of a difference of unit vectors, whose entries are normal with variance 2 / D: 2 / sqrt(pi).
    vectors = np.random.default_rng(0).normal(size=(2, 20, 10, width))
    pred, target = numpy_losses.unit(vectors).astype(np.float32)
    loss = jnp.mean(masked_feature_loss(pred, target))
    np.testing.assert_allclose(loss, 2 / np.pi**0.5, rtol=0.02)


@pytest.mark.parametrize("mask", VALID)
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_finite_and_only_where_it_counts(name, mask):
    loss, _ = LOSSES[name]
    pred, target = pair(VALID[mask])
    grad = np.asarray(jax.grad(lambda p: mean(loss(p, target), VALID[mask]))(pred))
    assert np.all(np.isfinite(grad))
    np.testing.assert_array_equal(np.any(grad, axis=-1), VALID[mask])


def test_vectors_of_unit_length():
    x = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    np.testing.assert_allclose(normalize(x), numpy_losses.unit(x), rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("excluded", ["none", "some", "all others"])
def test_distilled_cross_entropy_is_the_naive_one(alpha, excluded):
    rng = np.random.default_rng(0)
    logits, teacher = rng.normal(size=(2, 3, 8)).astype(np.float32) * 3
    out = {"none": np.zeros((3, 8), bool), "some": rng.random((3, 8)) < 0.4, "all others": np.ones((3, 8), bool)}[
        excluded
    ]
    out &= ~np.eye(3, 8, dtype=bool)

    def loss(logits):
        return distilled_cross_entropy(*(jnp.where(out, -jnp.inf, x) for x in (logits, teacher)), alpha)

    expected = numpy_losses.distilled_cross_entropy(logits, teacher, out, alpha)
    np.testing.assert_allclose(loss(logits), expected, rtol=1e-5, atol=1e-6)
    grad = np.asarray(jax.grad(lambda x: loss(x).sum())(logits))
    assert np.all(np.isfinite(grad))
    assert not np.any(grad[out])


def test_a_queue_holds_the_newest_pairs_newest_first():
    kept = feature_queue.make_queue(5, 2)
    for step in range(3):
        features = np.full((2, 2), step, np.float32)
        kept = feature_queue.push(kept, features, features + 10, np.full((2, 2), step, np.int32))
        assert int(kept.valid_Q.sum()) == min(5, 2 * (step + 1))
    assert kept.image_QE[:, 0].tolist() == [2, 2, 1, 1, 0]
    assert kept.text_QE[:, 0].tolist() == [12, 12, 11, 11, 10]
    assert kept.pair_id_Q2[:, 1].tolist() == [2, 2, 1, 1, 0]


def test_a_batch_larger_than_the_queue_fills_it():
    kept = feature_queue.push(
        feature_queue.make_queue(3, 1), *[np.arange(5.0)[:, None]] * 2, np.zeros((5, 2), np.int32)
    )
    assert kept.image_QE[:, 0].tolist() == [0, 1, 2]
    assert bool(kept.valid_Q.all())


@pytest.mark.parametrize(("progress", "alpha"), [(0.0, 0.0), (0.25, 0.2), (0.5, 0.4), (1.0, 0.4)])
def test_the_weight_of_soft_targets_rises_over_its_share_of_the_run(progress, alpha):
    rng = np.random.default_rng(0)
    own, teacher = numpy_losses.unit(rng.normal(size=(2, 2, 5, 6))).astype(np.float32)
    ctx = SimpleNamespace(
        ramp=lambda start, stop: Context.ramp(SimpleNamespace(progress=progress), start, stop),
        vlm=SimpleNamespace(current_temperature=lambda: 0.1),
        teacher=SimpleNamespace(image_embedding_BE=teacher[0], text_embedding_BE=teacher[1]),
        image_embedding_BE=own[0],
        text_embedding_BE=own[1],
        same_pair_BB=np.eye(5, dtype=bool),
        queue=None,
    )
    objective = momentum_contrastive.Objective(None, shared={}, queue=0, alpha=0.4, ramp=(0.0, 0.5), rngs=None)
    none = np.zeros((5, 5), bool)
    expected = [
        numpy_losses.distilled_cross_entropy(mine @ other.T / 0.1, its @ other.T / 0.1, none, alpha)
        for mine, its, other in ((own[0], teacher[0], teacher[1]), (own[1], teacher[1], teacher[0]))
    ]
    np.testing.assert_allclose(objective(ctx, None)[0].value, np.mean(expected, axis=0), rtol=1e-4)


@pytest.mark.parametrize(("progress", "alpha"), [(0.0, 0.0), (0.25, 0.2), (1.0, 0.4)])
def test_so_does_that_of_the_teacher_s_words(progress, alpha, monkeypatch):
    logits, teacher = (3 * np.random.default_rng(i).normal(size=(2, 3, 7)).astype(np.float32) for i in (0, 1))
    valid, target = np.array([[1, 1, 0], [1, 0, 0]], bool), np.array([[1, 2, 0], [3, 0, 0]])
    positions = SimpleNamespace(ids_BM=np.tile(np.arange(3), (2, 1)), valid_BM=valid)
    objective = SimpleNamespace(alpha=0.4, ramp=(0.0, 0.5), predict=lambda ctx: (logits, positions))
    objective.loss = lambda *args: masked_text.Objective.loss(objective, *args)
    ctx = SimpleNamespace(
        ramp=lambda start, stop: Context.ramp(SimpleNamespace(progress=progress), start, stop),
        batch={"tokens": target},
        teacher=None,
        teacher_head=lambda own: SimpleNamespace(predict=lambda ctx: (teacher, positions)),
    )
    terms, _ = distilled_masked_text.Objective.__call__(objective, ctx, None)
    hard = numpy_losses.masked_token_cross_entropy(logits, target, valid)
    soft = numpy_losses.soft_cross_entropy(logits, teacher, valid)
    np.testing.assert_allclose(mean_of(terms), (1 - alpha) * hard + alpha * soft, rtol=1e-5)
