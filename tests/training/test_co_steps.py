"""A step of streams that read each other: the same on several devices, and in microbatches."""

import numpy as np
import pytest

from tests.conftest import toy_config
from tests.reference import toy
from tests.training.steps import first_gradients, mesh_of, one_device, share_apart, train


def config_of(**values):
    return toy_config("recipe=m3ae_med", masking__image_cell=1, model__fusion__depth=2, model__fusion__tap=1, **values)


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("axes", [(2, 2, 2), (8, 1, 1)], ids=str)
def test_eight_devices_give_the_losses_and_parameters_of_one(axes):
    (state, told), (expected_state, expected) = (train(config_of(), mesh, 3) for mesh in (mesh_of(*axes), one_device()))
    for ours, theirs in zip(told, expected, strict=True):
        assert ours.keys() == theirs.keys() >= {"masked_image/loss", "masked_text/loss", "matching/loss"}
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=2e-4, atol=2e-5)
    assert share_apart(state.params, expected_state.params) < 0.02


@pytest.mark.parametrize("parts", [2, 8])
def test_microbatches_give_the_gradients_of_the_whole_batch(parts):
    whole, cut = (first_gradients(config_of(optim__accumulate=accumulate)) for accumulate in (1, parts))
    np.testing.assert_allclose(cut[1], whole[1], rtol=1e-5)
    toy.assert_trees_close(cut[0], whole[0], 2e-5)
