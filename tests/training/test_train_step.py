"""The step: same numbers on every mesh, one compilation, accumulation, moving average, precision."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskvlm_jax.plan.hlo import Collective, Program
from maskvlm_jax.runtime import sharding
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.training import build, train_step
from tests.conftest import toy_config
from tests.reference import toy
from tests.training.steps import (
    MESHES,
    first_gradients,
    first_loss,
    host_batches,
    mesh_of,
    one_device,
    share_apart,
    train,
)


@pytest.fixture(scope="module")
def on_one_device():
    return train(toy_config(), one_device())


def test_every_loss_falls_on_a_batch_that_is_seen_again(on_one_device):
    config, mesh = toy_config(steps=40, optim__lr=3e-3, optim__encoder_lr=3e-3), one_device()
    with jax.set_mesh(mesh):
        built = build.build(config, mesh)
        state, step = built.init(), built.step
        batch = sharding.put(host_batches(config, 1)[0], mesh)
        told = []
        for _ in range(40):
            state, metrics = step(state, batch)
            told.append(metrics)
    for name in ("masked_image/loss", "masked_text/loss", "contrastive/loss"):
        assert float(told[-1][name]) < 0.8 * float(told[0][name]), name


@pytest.mark.parametrize(
    "axes",
    [pytest.param(axes, marks=[] if axes == (2, 2, 2) else pytest.mark.slow) for axes in MESHES],
    ids=str,
)
def test_eight_devices_give_the_losses_and_parameters_of_one(on_one_device, axes):
    state, told = train(toy_config(), mesh_of(*axes))
    expected_state, expected = on_one_device
    for ours, theirs in zip(told, expected, strict=True):
        assert ours.keys() == theirs.keys()
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=2e-4, atol=2e-5)
    # Adam's first steps are signs of gradients: a rounding error where one is zero moves a weight by the whole rate.
    assert share_apart(state.params, expected_state.params) < 0.02


def collectives_of(config, mesh) -> list[Collective]:
    """What a step's compiled program sends between devices."""
    with jax.set_mesh(mesh):
        built = build.build(config, mesh)
        lowered = built.step.lower(*build.described(config, built, mesh))
        return Program(lowered.compile({"xla_backend_optimization_level": 0}).as_text()).collectives()


@pytest.mark.slow
def test_devices_along_fsdp_have_rows_of_their_own():
    """Rows that they computed together they would reduce together, layer by layer; it is gradients alone."""
    reduced = {}
    for axes in ((8, 1, 1), (2, 4, 1)):
        config = only("contrastive", batch_size=64, model__image__depth=3, model__text__depth=3)
        config.model.shared.unroll = False
        found = collectives_of(config, mesh_of(*axes))
        reduced[axes] = sum(part.size * part.times for part in found if part.kind == "all-reduce")
    assert reduced[2, 4, 1] < 2 * reduced[8, 1, 1]


@pytest.mark.slow
def test_local_negatives_let_no_sequence_travel():
    """What goes from device to device is gradients, pooled features and masks; by global negatives memories too."""
    travelled = {}
    for pool in ("global", "local"):
        config = only("contrastive", "matching", objectives__matching__pool=pool, batch_size=16)
        found = [part for part in collectives_of(config, mesh_of(8, 1, 1)) if part.kind != "all-reduce"]
        travelled[pool] = max(part.size for part in found)
    one_sequence = 16 * 20 * 32 * 4  # of each caption of the batch
    assert travelled["local"] < one_sequence <= travelled["global"]


def test_slices_lie_one_after_the_other_along_data(monkeypatch):
    plain = lambda shape, devices, **_: np.array(devices, object).reshape(shape)  # noqa: E731
    monkeypatch.setattr(sharding.mesh_utils, "create_device_mesh", plain)
    devices = [SimpleNamespace(id=i, slice_index=i % 2, platform="tpu") for i in range(8)]
    placed = sharding._arrange((4, 2, 1), devices)
    assert [device.slice_index for device in placed.ravel()] == [0] * 4 + [1] * 4
    with pytest.raises(UserError, match="data=1 is not divisible by the 2 slices"):
        sharding._arrange((1, 8, 1), devices)
    nodes = [SimpleNamespace(id=i, slice_index=i % 2, platform="gpu") for i in range(8)]
    assert sharding._arrange((1, 8, 1), nodes).ravel().tolist() == nodes


def test_parameters_are_split_over_fsdp_and_model():
    mesh = sharding.make_mesh(data=2, fsdp=2, model=2)
    with jax.set_mesh(mesh):
        state = build.build(toy_config(), mesh).init()
    kernel = state.params["vlm"]["image_encoder"]["blocks"]["block"]["feed_forward"]["up"]["kernel"]
    assert kernel.shape == (1, 32, 128)
    assert kernel.addressable_shards[0].data.shape == (1, 16, 64)
    moments = state.opt_state[1].mu["vlm"]["image_encoder"]["blocks"]["block"]["feed_forward"]["up"]["kernel"]
    assert moments.sharding == kernel.sharding


def test_a_parameter_that_no_rule_covers_is_an_error():
    with pytest.raises(ValueError, match="no sharding rule covers the parameter vlm/strange"):
        sharding.parameter_shardings({"vlm": {"strange": jnp.zeros(3)}}, one_device())


def only(*labels: str, **values):
    """The toy config with the objectives `labels` alone."""
    config = toy_config(**values)
    for label in config.objectives:
        config.objectives[label].weight = float(label in labels)
    return config


@pytest.mark.parametrize(
    ("recipe", "parts"),
    [
        ("maskvlm", (4,)),
        *(pytest.param(recipe, (2, 8), marks=pytest.mark.slow) for recipe in ("maskvlm", "albef", "mamo", "mlim")),
        *(pytest.param(recipe, (2, 8), marks=pytest.mark.slow) for recipe in ("m3ae", "clip")),
    ],
)
def test_accumulation_gives_the_gradients_of_the_whole_batch(recipe, parts):
    """Negatives of other microbatches, queue, targets and means over words included."""

    def gradients_and_loss(accumulate: int):
        config = toy_config(f"recipe={recipe}", batch_size=8, optim__accumulate=accumulate)
        with config.unlocked():
            for part in ("image", "text", "fusion"):
                config.model[part].dropout = 0.0
        return first_gradients(config)

    whole, loss, queue = gradients_and_loss(1)
    for accumulate in parts:
        cut, cut_loss, cut_queue = gradients_and_loss(accumulate)
        np.testing.assert_allclose(cut_loss, loss, rtol=1e-5)
        toy.assert_trees_close(cut, whole, 2e-5)
        if queue is not None:
            toy.assert_trees_close(cut_queue._asdict(), queue._asdict(), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["global", "local"])
def test_accumulation_on_several_devices_gives_the_gradients_of_the_whole_batch(pool):
    mesh = sharding.make_mesh(data=1, fsdp=2, model=1, devices=jax.devices()[:2])
    whole, cut = (
        first_gradients(toy_config(optim__accumulate=accumulate, objectives__matching__pool=pool), mesh)
        for accumulate in (1, 4)
    )
    np.testing.assert_allclose(cut[1], whole[1], rtol=1e-5)
    toy.assert_trees_close(cut[0], whole[0], 2e-5)


@pytest.mark.parametrize("label", ["masked_image", "masked_text", "contrastive", "matching"])
def test_each_objective_can_be_trained_alone(label):
    told = first_loss(only(label))
    assert np.isfinite(told["loss"])
    assert {name.split("/")[0] for name in told if "/" in name} == {label}


@pytest.mark.slow
def test_both_modalities_can_be_masked_at_once():
    config = toy_config(objectives__masked_image__other="masked", objectives__masked_text__other="masked")
    assert np.isfinite(first_loss(config)["loss"])


def test_the_moving_average_follows_the_parameters():
    config, mesh = only("contrastive", optim__ema_decay=0.9, optim__ema_ramp=False), one_device()
    with jax.set_mesh(mesh):
        built = build.build(config, mesh)
        state, step = built.init(), built.step
        before = jax.device_get(state.params)
        batch = host_batches(config, 1)[0]
        for _ in range(2):  # the first step's rate is zero
            old = jax.device_get(state.ema)
            state, _ = step(state, sharding.put(batch, mesh))
        after = jax.device_get(state)
    for ema, previous, params in zip(*map(jax.tree.leaves, (after.ema, old, after.params)), strict=True):
        np.testing.assert_allclose(ema, 0.9 * previous + 0.1 * params, rtol=1e-5, atol=1e-7)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after.params), strict=True))


def test_bfloat16_compute_keeps_float32_parameters_and_a_loss_close_to_float32(on_one_device):
    config = toy_config()
    config.model.shared.dtype = "bfloat16"
    with jax.set_mesh(one_device()):
        built = build.build(config, one_device())
        state, step = built.init(), built.step
        state, _ = jax.eval_shape(step, state, host_batches(config, 1)[0])
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}
    assert first_loss(config)["loss"] == pytest.approx(on_one_device[1][0]["loss"], rel=0.03)


@pytest.mark.slow
def test_fifty_losses_in_bfloat16_are_those_in_float32_to_a_hundredth():
    losses = []
    for dtype in ("float32", "bfloat16"):
        config = toy_config()
        config.model.shared.dtype, config.steps = dtype, 50
        losses.append([metrics["loss"] for metrics in train(config, one_device(), 50)[1]])
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.01)


def test_dropout_is_drawn_anew_each_step_and_again_the_same_by_a_restart():
    config = only("contrastive", model__text__dropout=0.3)
    config.optim.lr = config.optim.encoder_lr = 1e-12
    mesh = one_device()
    with jax.set_mesh(mesh):
        built = build.build(config, mesh)
        state, step = built.init(), built.step
        batch = sharding.put(host_batches(config, 1)[0], mesh)
        losses = []
        for _ in range(2):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
        state = build.build(config, mesh).init()
        _, metrics = step(state, batch)
    assert losses[0] != losses[1]
    assert float(metrics["loss"]) == losses[0]


def test_the_hash_tells_parameters_apart():
    params = {"a": {"kernel": np.ones((2, 2), np.float32)}}
    other = {"a": {"kernel": np.ones((2, 2), np.float32) * np.float32(1 + 1e-7)}}
    assert train_step.parameters_sha256(params) == train_step.parameters_sha256({"a": dict(params["a"])})
    assert train_step.parameters_sha256(params) != train_step.parameters_sha256(other)


@pytest.mark.parametrize(
    "mesh", [one_device, pytest.param(lambda: sharding.make_mesh(data=2, fsdp=2, model=2), marks=pytest.mark.slow)]
)
def test_a_step_compiled_ahead_is_not_compiled_again(mesh):
    config, mesh = toy_config(), mesh()
    with jax.set_mesh(mesh):
        built = build.build(config, mesh)
        compiled = train_step.compile_ahead(built.step, mesh, *build.described(config, built, mesh))
        state, batch = built.init(), sharding.put(host_batches(config, 1)[0], mesh)
        compiled()
        compilations = []
        jax.monitoring.register_event_duration_secs_listener(
            lambda name, seconds, **of: compilations.append(name) if "backend_compile" in name else None
        )
        built.step(state, batch)
        assert not compilations
        jax.jit(lambda x: x + 1)(batch["pair_id"])
        assert compilations  # the listener hears


def test_waiting_for_a_step_raises_what_its_compilation_raised():
    wrong = jax.jit(lambda state, batch: state @ batch)
    shapes = [jax.ShapeDtypeStruct((size,), jnp.float32) for size in (2, 3)]
    with pytest.raises(TypeError, match="dot_general"):
        train_step.compile_ahead(wrong, one_device(), *shapes)()
