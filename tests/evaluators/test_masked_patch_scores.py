"""Scores of masked patches are those of the naive sums, over the pictures that are read and no padding."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskvlm_jax.evaluators import masked_patches

RNG = np.random.default_rng(0)
PICTURES, MASKED, VALUES = 5, 3, 18
TARGET = RNG.random((PICTURES, MASKED, VALUES)).astype(np.float32)
TARGET[0, 0, :9] = 0  # an empty histogram


def found(pred: np.ndarray, *, bins: int = 9, limit: int = 0) -> dict[str, float]:
    """The scores of predictions of `TARGET`, two pictures at a time."""
    arrays = {"pred": pred, "target": TARGET}

    def batch(pictures, texts, valid):
        hidden = np.arange(4) < MASKED
        return {"image_masked": np.tile(hidden, (len(pictures), 1)), "rows": pictures}

    def predict(ctx):
        return jnp.asarray(arrays["pred"])[ctx["rows"]], None

    objective = SimpleNamespace(bins=bins, predict=predict, target=lambda ctx: jnp.asarray(TARGET)[ctx["rows"]])
    learner = SimpleNamespace(context=lambda batch: batch, offering=lambda role: objective)
    data = SimpleNamespace(images=np.zeros((PICTURES, 2, 2, 3)), first_captions=np.arange(PICTURES), batch=batch)
    predictor = SimpleNamespace(fetch=lambda function, batch: jax.device_get(function(learner, batch)))
    return dict(masked_patches.scores(predictor, data, limit=limit, batch_size=2))


@pytest.mark.parametrize("limit", [0, 3])
def test_scores_are_the_naive_ones(limit):
    pred = RNG.normal(size=TARGET.shape).astype(np.float32)
    scores, read = found(pred, limit=limit), slice(limit or None)
    error, target = (pred[read] - TARGET[read]) ** 2, TARGET[read].reshape(-1, VALUES)
    assert scores["masked_patches_loss"] == pytest.approx(error.mean(), rel=1e-5)
    spread = ((target - target.mean(axis=0)) ** 2).mean()
    assert scores["masked_patches_explained"] == pytest.approx(100 * (1 - error.mean() / spread), rel=1e-5)
    pairs = zip(pred[read].reshape(-1, 9), target.reshape(-1, 9), strict=True)
    lengths, products = zip(*((np.linalg.norm(t), p @ t / np.linalg.norm(p)) for p, t in pairs), strict=True)
    assert scores["masked_patches_cosine"] == pytest.approx(100 * sum(products) / sum(lengths), rel=1e-5)


def test_the_truth_is_explained_whole_and_the_best_constant_not_at_all():
    assert [round(value, 3) for value in found(TARGET).values()] == [0.0, 100.0, 100.0]
    mean = np.broadcast_to(TARGET.reshape(-1, VALUES).mean(axis=0), TARGET.shape)
    assert found(mean)["masked_patches_explained"] == pytest.approx(0, abs=1e-4)


def test_pixels_have_no_cosine():
    assert found(TARGET, bins=0).keys() == {"masked_patches_loss", "masked_patches_explained"}


def test_a_stroke_lies_along_its_edge():
    value = np.zeros((2, 27), np.float32)
    value[0, [4, 13, 22]], value[1, [0, 9, 18]] = 1, 1  # gradients across and, within 20 degrees, down
    upright, flat = masked_patches.strokes(value, 40)[..., 0].astype(float)
    assert upright[:, 18:22].sum() == upright.sum() > 0
    assert flat[10:30].sum() == flat.sum() > 0 and flat.any(axis=0).sum() > 30
