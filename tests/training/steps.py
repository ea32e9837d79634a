"""Steps of toy runs on meshes of CPU devices, for several tests."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from maskvlm_jax.data import batch as batches
from maskvlm_jax.data import training_stream
from maskvlm_jax.data.scenes.source import Scenes
from maskvlm_jax.data.sources.training_set import Limited
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime import sharding
from maskvlm_jax.training import build, train_step
from tests.data.streaming import fields, make_tokenizer


def one_device():
    return sharding.make_mesh(data=1, fsdp=1, model=1, devices=jax.devices()[:1])


def host_batches(config, count: int) -> list[dict[str, np.ndarray]]:
    source = Scenes(split="train", image_size=32, length=64)
    make_example = training_stream.MakeExample(
        source,
        fields(make_tokenizer(source)),
        image_size=32,
        augment=config.data.augment.to_dict(),
        masking_options=config.masking.to_dict(),
    )
    stream = training_stream.train_stream(
        Limited(source), make_example, batch_size=8, seed=0, start=0, stop=count, workers=0, threads=0
    )
    return [{k: v for k, v in batch.items() if k not in batches.HOST_KEYS} for batch in stream]


def train(config, mesh, count: int = 20):
    """Final state on the host and the metrics of every step."""
    with jax.set_mesh(mesh):
        built = build.build(config, mesh)
        state, step = built.init(), built.step
        told = []
        for batch in host_batches(config, count):
            state, metrics = step(state, sharding.put(batch, mesh))
            told.append({name: float(value) for name, value in metrics.items()})
        assert step._cache_size() == 1, "the step compiled more than once"
        return jax.device_get(state), told


def first_loss(config) -> dict[str, float]:
    """The metrics of the first batch under the initial parameters: forward only, compiled in the least time."""
    arguments = build.model_arguments(config)

    def run(batch):
        learner = Learner(**arguments, rngs=nnx.Rngs(0))
        return learner(batch, jax.random.fold_in(jax.random.key(0), 0)).metrics

    batch = {name: jnp.asarray(value) for name, value in host_batches(config, 1)[0].items()}
    compiled = jax.jit(run).lower(batch).compile({"xla_backend_optimization_level": 0})
    return {name: float(value) for name, value in compiled(batch).items()}


def first_gradients(config, mesh=None):
    """The gradients, loss and next queue of the first batch: a step of plain gradient descent, taken back."""
    arguments, mesh = build.model_arguments(config), mesh or one_device()
    tx = optax.sgd(1.0)
    with jax.set_mesh(mesh):
        graphdef, init, shardings = train_step.describe_state(
            lambda: Learner(**arguments, rngs=nnx.Rngs(0)), tx, ema=bool(config.optim.ema_decay), mesh=mesh
        )
        step = train_step.make_train_step(
            graphdef,
            tx,
            optax.constant_schedule(1.0),
            seed=0,
            accumulate=config.optim.accumulate,
            ema_decay=config.optim.ema_decay,
            freeze=tuple(config.optim.freeze),
            shardings=shardings,
            mesh=mesh,
        )
        before, batch = jax.device_get(init().params), sharding.put(host_batches(config, 1)[0], mesh)
        compiled = step.lower(init(), batch).compile({"xla_backend_optimization_level": 0})
        after, metrics = compiled(init(), batch)
        grads = jax.tree.map(np.subtract, before, jax.device_get(after.params))
        return grads, float(metrics["loss"]), jax.device_get(after.queue)


def share_apart(ours, theirs) -> float:
    """Share of all parameters that differ by more than 1e-4."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return float(np.mean(np.concatenate([np.abs(a - b).ravel() for a, b in pairs]) > 1e-4))


MESHES = [(8, 1, 1), (4, 2, 1), (2, 2, 2), (1, 8, 1), (1, 1, 8)]


def mesh_of(*axes: int):
    return sharding.make_mesh(**dict(zip(sharding.AXES, axes, strict=True)))
