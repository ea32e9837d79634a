"""A step with routed experts: the same on several devices, and in microbatches, whose shares are the whole batch's."""

import jax
import numpy as np
import pytest

from maskvlm_jax.training import build
from tests.conftest import toy_config
from tests.reference import toy
from tests.training.steps import first_gradients, mesh_of, one_device, share_apart, train


def config_of(**values):
    return toy_config("recipe=eve", masking__image_cell=1, model__fusion__depth=3, **values)


@pytest.mark.slow
@pytest.mark.parametrize(("axes", "experts"), [((2, 2, 2), 4), ((4, 2, 1), 8)], ids=str)
def test_eight_devices_give_the_losses_and_parameters_of_one(axes, experts):
    """Eight experts are sorted, on the rows of each device by themselves."""
    config = config_of(model__fusion__experts__count=experts)
    (state, told), (expected_state, expected) = (train(config, mesh, 4) for mesh in (mesh_of(*axes), one_device()))
    for ours, theirs in zip(told, expected, strict=True):
        assert ours.keys() == theirs.keys() >= {"load_balance/loss", "load_balance/busiest", "load_balance/entropy"}
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=2e-4, atol=2e-5)
    assert share_apart(state.params, expected_state.params) < 0.02


@pytest.mark.parametrize("parts", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_microbatches_give_the_gradients_of_the_whole_batch(parts):
    """The share of a microbatch that goes to an expert is not what the loss reads: that is the whole batch's."""
    whole, cut = (
        first_gradients(config_of(optim__accumulate=accumulate, objectives__load_balance__weight=10.0))
        for accumulate in (1, parts)
    )
    np.testing.assert_allclose(cut[1], whole[1], rtol=1e-5)
    toy.assert_trees_close(cut[0], whole[0], 2e-5)


def test_experts_are_split_over_the_axis_of_the_model():
    mesh = mesh_of(2, 2, 2)
    with jax.set_mesh(mesh):
        shardings = build.build(config_of(), mesh).shardings.params
    block = shardings["vlm"]["fusion"]["encoder"]["routed_blocks"]["block"]
    assert tuple(block["experts"]["up"]["kernel"].spec) == (None, "model", "fsdp", None)
    assert tuple(block["experts"]["down"]["bias"].spec) == (None, "model")
    assert not any(block["router"]["kernel"].spec) and not any(block["router"]["text_type"].spec)
    assert tuple(
        shardings["vlm"]["fusion"]["encoder"]["lower_blocks"]["block"]["feed_forward"]["text"]["up"]["kernel"].spec
    )[1:] == ("fsdp", "model")
