"""A step of recipe=syncmask, its masks and semi-hard negatives: the same on several devices and in microbatches."""

import numpy as np
import pytest

from tests.conftest import toy_config
from tests.reference import toy
from tests.training.steps import MESHES, first_gradients, mesh_of, one_device, share_apart, train


def config_of(**values):
    return toy_config("recipe=syncmask", **values)


@pytest.fixture(scope="module")
def on_one_device():
    return train(config_of(), one_device(), 4)


@pytest.mark.slow
@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_eight_devices_give_the_losses_and_parameters_of_one(on_one_device, axes):
    expected_state, expected = on_one_device
    state, told = train(config_of(), mesh_of(*axes), 4)
    for ours, theirs in zip(told, expected, strict=True):
        assert ours.keys() == theirs.keys() >= {"masked_image/loss", "contrastive/loss", "matching/semi_hard"}
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=2e-4, atol=2e-5)
    assert share_apart(state.params, expected_state.params) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 8])
def test_microbatches_give_the_gradients_of_the_whole_batch(parts):
    """The teacher masks each example by itself, and what is less similar is told by the whole batch's similarities."""
    whole, cut = (first_gradients(config_of(optim__accumulate=accumulate)) for accumulate in (1, parts))
    np.testing.assert_allclose(cut[1], whole[1], rtol=1e-5)
    toy.assert_trees_close(cut[0], whole[0], 2e-5)
    toy.assert_trees_close(cut[2]._asdict(), whole[2]._asdict(), 1e-5)
