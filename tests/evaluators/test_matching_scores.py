"""Matching scores of many pairs: in blocks, in batches and on many devices, the same as each pair by itself."""

import jax
import numpy as np
import pytest

from maskvlm_jax.evaluators import encoding
from maskvlm_jax.evaluators.predictor import Functions, Predictor
from maskvlm_jax.runtime import sharding
from maskvlm_jax.training.train_step import split_model
from tests.reference import toy


@pytest.fixture(scope="module")
def model():
    graphdef, params = split_model(toy.learner())
    return Functions(graphdef), params


def scores(model, mesh) -> tuple[np.ndarray, np.ndarray]:
    """(I, T) matching scores of half of all pairs of 5 pictures and 7 captions; which they are."""
    functions, params = model
    pictures, captions = toy.batch(5), toy.batch(7, seed=1)
    wanted = np.random.default_rng(2).random((5, 7)) < 0.5
    wanted[:2, :3] = False  # a block without pairs
    with jax.set_mesh(mesh):
        predictor = Predictor(functions, params, objectives=("contrastive", "matching"), mesh=mesh)
        pad = lambda x: np.concatenate([x, np.zeros((8 - len(x), *x.shape[1:]), x.dtype)])  # noqa: E731
        image = predictor.encode_image(pad(pictures["image"]))[0][:5]
        text = predictor.encode_text(pad(captions["tokens"]), pad(captions["token_valid"]))[0][:7]
        return encoding.match_scores(predictor, image, text, captions["token_valid"], wanted), wanted


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_scores_in_blocks_are_those_of_each_pair_alone(model, devices, monkeypatch):
    for name, size in (("IMAGE_BLOCK", 2), ("TEXT_BLOCK", 3), ("PAIR_BATCH", 2), ("MOST_UNDER_WAY", 1)):
        monkeypatch.setattr(encoding, name, size)
    mesh = sharding.make_mesh(data=devices, fsdp=1, model=1, devices=jax.devices()[:devices])
    found, wanted = scores(model, mesh)
    learner, pictures, captions = toy.learner(), toy.batch(5), toy.batch(7, seed=1)
    for i, t in zip(*np.nonzero(wanted), strict=True):
        pair = {"image": pictures["image"][i, None]}
        pair |= {name: captions[name][t, None] for name in ("tokens", "token_valid")} | {"image_masked": None}
        ctx = learner.context(pair)
        alone = learner.objectives["matching"].log_odds(toy.fuse_pairs(ctx, np.array([0]), np.array([0])))[0]
        np.testing.assert_allclose(found[i, t], alone, rtol=1e-4, atol=1e-5)
    assert np.all(np.isneginf(found[~wanted]))
