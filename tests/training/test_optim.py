"""The optimizer is AdamW as written, with decay and learning rate by parameter path; so is the moving average."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.objectives.learner import Output
from maskvlm_jax.runtime import sharding
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.training.optim import make_optimizer, make_schedule
from maskvlm_jax.training.train_step import describe_state, make_train_step, split_model
from tests.reference import numpy_optim, toy

TEMPERATURE_RATE = 5.0
SCHEDULE = {"lr": 1e-2, "warmup_steps": 2, "steps": 10, "final_ratio": 0.1}
OPTIONS = {**SCHEDULE, "encoder_lr": 1e-3, "weight_decay": 0.05, "b1": 0.9, "b2": 0.98, "clip_norm": 1.0}
OPTIONS["temperature_rate"] = TEMPERATURE_RATE

# path -> (decays, in an encoder, where what was read in has its own rate; a mask token is always new)
PATHS = {
    "vlm/image_encoder/patch_embedding/kernel": (True, True),
    "vlm/image_encoder/blocks/block/attention/query/kernel": (True, True),
    "vlm/image_encoder/blocks/block/norm1/scale": (False, True),
    "vlm/image_encoder/class_token": (False, True),
    "vlm/image_encoder/mask_token": (False, False),
    "vlm/image_encoder/position": (False, True),
    "vlm/text_encoder/embedding": (True, True),
    "vlm/text_encoder/embedding_norm/bias": (False, True),
    "vlm/image_projection/kernel": (True, False),
    "vlm/fusion/text_stream/blocks/block/cross_attention/key/kernel": (True, False),
    "vlm/fusion/text_stream/blocks/block/cross_attention/key/bias": (False, False),
    "vlm/temperature": (False, False),
    "objectives/masked_image/decoder/blocks/block/feed_forward/up/kernel": (True, False),
    "objectives/masked_text/to_words/bias": (False, False),
}


def rate_of(path: str) -> float:
    """The rate of a path over that of the heads."""
    return 0.1 if PATHS[path][1] else TEMPERATURE_RATE if path.endswith("temperature") else 1.0


def random_tree(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        path: (scale * rng.normal(size=() if path.endswith("temperature") else (3,))).astype(np.float32)
        for path in PATHS
    }


@pytest.mark.parametrize("scale", [1e-2, 10.0], ids=["gradients below the clip norm", "gradients clipped"])
def test_three_steps_are_those_of_the_naive_adamw(scale):
    tx, _ = make_optimizer(**OPTIONS)
    start = random_tree(0)
    oracle = numpy_optim.AdamW(
        start,
        decay={path: 0.05 * decays for path, (decays, _) in PATHS.items()},
        ratio={path: rate_of(path) for path in PATHS},
        b1=0.9,
        b2=0.98,
    )
    params = toy.nested(start)
    state = tx.init(params)
    for step in range(3):
        grads = random_tree(step + 1, scale)
        updates, state = tx.update(toy.nested(grads), state, params)
        params = jax.tree.map(jnp.add, params, updates)
        lr = numpy_optim.learning_rate(step, **SCHEDULE)
        oracle.step(numpy_optim.clipped(grads, OPTIONS["clip_norm"]), lr)
    for path, value in toy.by_path(params).items():
        np.testing.assert_allclose(value, oracle.params[path], rtol=1e-5, atol=1e-6, err_msg=path)
        assert np.any(value != start[path])


def test_decay_pulls_only_kernels_and_embeddings():
    tx, _ = make_optimizer(**OPTIONS | {"warmup_steps": 0})
    params = toy.nested(random_tree(0))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates = toy.by_path(tx.update(zeros, tx.init(params), params)[0])
    assert {path for path, value in updates.items() if np.any(value)} == {
        p for p, (decays, _) in PATHS.items() if decays
    }


def test_every_parameter_of_the_model_decays_or_is_one_of_those_that_must_not():
    tx, _ = make_optimizer(**OPTIONS | {"warmup_steps": 0})
    _, params = split_model(toy.learner())
    params = jax.tree.map(lambda x: jnp.ones(()), params)  # only the paths matter
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates = toy.by_path(tx.update(zeros, tx.init(params), params)[0])
    kept = ("bias", "scale", "class_token", "mask_token", "position", "temperature")
    for path, value in updates.items():
        assert np.any(value) != path.endswith(kept), path


def test_encoders_and_the_temperature_move_by_their_own_rates_and_everything_else_by_the_other():
    tx, _ = make_optimizer(**OPTIONS | {"warmup_steps": 0, "weight_decay": 0.0})
    params = toy.nested(random_tree(0))
    ones = jax.tree.map(jnp.ones_like, params)
    updates = toy.by_path(tx.update(ones, tx.init(params), params)[0])
    for path in PATHS:
        np.testing.assert_allclose(updates[path], -1e-2 * rate_of(path), rtol=1e-5, err_msg=path)


@pytest.mark.parametrize("step", range(12))
def test_the_schedule_is_a_line_then_a_cosine(step):
    expected = numpy_optim.learning_rate(step, **SCHEDULE)
    np.testing.assert_allclose(make_schedule(**SCHEDULE)(step), expected, rtol=1e-5, atol=1e-9)


def test_the_schedule_at_its_corners():
    schedule = make_schedule(lr=1.0, warmup_steps=10, steps=110, final_ratio=0.2)
    np.testing.assert_allclose([schedule(t) for t in (0, 5, 10, 60, 110, 500)], [0, 0.5, 1, 0.6, 0.2, 0.2], atol=1e-6)


@pytest.mark.parametrize("warmup_steps", [10, 11])
def test_a_warm_up_as_long_as_the_run_is_refused(warmup_steps):
    with pytest.raises(UserError, match="warmup_steps"):
        make_schedule(**SCHEDULE | {"warmup_steps": warmup_steps})


class OneNumber(nnx.Module):
    """loss = mean(x) * the temperature: its gradient is mean(x)."""

    def __init__(self):
        self.vlm = nnx.Dict(temperature=nnx.Param(jnp.asarray(2.0, jnp.float32)))

    def make_queue(self):
        return None

    def first_kept(self):
        return {"sum": jnp.zeros((), jnp.float32)}

    def next_kept(self, kept, seen):
        return {"sum": kept["sum"] + seen}

    def constrain(self):
        self.vlm.temperature[...] = jnp.clip(self.vlm.temperature[...], 0.0, 10.0)

    def embeddings(self, batch):
        return None, None

    def counts(self, batch, key, **options):
        return {}

    def __call__(self, batch, key, *, teacher, queue, kept, progress, full=None, teacher_full=None, counts=None):
        loss = jnp.mean(batch["x"]) * self.vlm.temperature[...]
        return Output(loss, {"loss": loss}, queue, jnp.mean(batch["x"]))


def train(accumulate: int, ema_decay: float, **options):
    """The states of a toy run of three steps, first the initial one, and the last step's metrics."""
    mesh = sharding.make_mesh(data=1, fsdp=1, model=1, devices=jax.devices()[:1])
    tx, schedule = make_optimizer(**OPTIONS)
    graphdef, init, shardings = describe_state(OneNumber, tx, ema=bool(ema_decay), mesh=mesh)
    make = partial(make_train_step, seed=0, accumulate=accumulate, ema_decay=ema_decay, shardings=shardings, mesh=mesh)
    make = partial(make, **options)
    step, state = make(graphdef, tx, schedule), init()
    states = [jax.device_get(state)]
    for t in range(3):
        state, metrics = step(state, sharding.put({"x": np.full(4, t + 1.0, np.float32)}, mesh))
        states.append(jax.device_get(state))
    return states, metrics


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_objectives_keep_takes_in_every_batch_whole(accumulate):
    states, _ = train(accumulate=accumulate, ema_decay=0.0)
    assert [float(state.kept["sum"]) for state in states] == [0, 1, 3, 6]


def test_the_moving_average_follows_the_parameters():
    states, _ = train(accumulate=1, ema_decay=0.8)
    average = 2.0
    for state in states[1:]:
        average = 0.8 * average + 0.2 * float(state.params["vlm"]["temperature"])
        np.testing.assert_allclose(state.ema["vlm"]["temperature"], average, rtol=1e-6)
    assert float(states[-1].params["vlm"]["temperature"]) != 2.0


def test_a_ramped_moving_average_starts_at_the_parameters_and_ends_at_its_decay():
    states, _ = train(accumulate=1, ema_decay=0.2, ema_ramp=True)
    average = 2.0
    for step, state in enumerate(states[1:]):
        decay = min(0.2, (1 + step) / (10 + step))  # 1 / 10, 2 / 11, 0.2
        average = decay * average + (1 - decay) * float(state.params["vlm"]["temperature"])
        np.testing.assert_allclose(state.ema["vlm"]["temperature"], average, rtol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_counts_itself_moves_the_parameters_and_reports_its_gradient_and_rate(accumulate):
    states, metrics = train(accumulate, ema_decay=0.0)
    oracle = numpy_optim.AdamW({"t": np.array(2.0)}, decay={"t": 0.0}, ratio={"t": TEMPERATURE_RATE}, b1=0.9, b2=0.98)
    for t in range(3):
        lr = numpy_optim.learning_rate(t, **SCHEDULE)
        oracle.step(numpy_optim.clipped({"t": np.array(t + 1.0)}, 1.0), lr)
    assert [int(state.step) for state in states] == [0, 1, 2, 3]
    assert states[-1].ema == {}
    np.testing.assert_allclose(states[-1].params["vlm"]["temperature"], oracle.params["t"], rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], 3.0, rtol=1e-6)
    np.testing.assert_allclose(metrics["lr"], numpy_optim.learning_rate(2, **SCHEDULE), rtol=1e-6)
