"""The state of training and one pure function that advances it."""

import hashlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from maskvlm_jax.objectives.feature_queue import Queue, push
from maskvlm_jax.objectives.learner import Kept
from maskvlm_jax.runtime import processes, sharding
from maskvlm_jax.runtime.parameters import is_frozen, map_by_path, parameter_path
from maskvlm_jax.training.accumulation import gradients_of_parts

Params = Any
Batch = Mapping[str, jax.Array]
SIGNAL = "signal"  # the name of the largest signal among a step's metrics


class TrainState(NamedTuple):
    """All that a resumed run needs besides its config: the stream and every key are functions of (seed, step).

    `ema` is an exponential moving average of the parameters, or an empty dict where it is off; `queue` features of
    earlier batches, or None where no objective reads any; `kept` what objectives keep, by label, of those that do.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    ema: Params
    queue: Queue | None
    kept: Kept


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """Graph definition and parameters as a nested dict of arrays."""
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state)


def describe_state(
    build: Callable[[], nnx.Module], tx: optax.GradientTransformation, *, ema: bool, mesh: Mesh
) -> tuple[nnx.GraphDef, Callable[[], TrainState], TrainState]:
    """Describes the initial state without allocating it.

    Returns:
        graphdef: merges with `state.params` into the model.
        init: makes the state on the devices.
        shardings: a TrainState of shardings.
    """
    graphdef = None

    def make() -> TrainState:
        nonlocal graphdef
        model = build()
        graphdef, params = split_model(model)
        # A copy: the state is donated, and one buffer cannot be donated twice.
        average = jax.tree.map(jnp.copy, params) if ema else {}
        start = jnp.zeros((), jnp.int32)
        return TrainState(start, params, tx.init(params), average, model.make_queue(), model.first_kept())

    shapes = jax.eval_shape(make)
    params = sharding.parameter_shardings(shapes.params, mesh)
    shardings = TrainState(
        step=sharding.replicated(mesh),
        params=params,
        opt_state=sharding.optimizer_shardings(tx, shapes.params, params, mesh),
        ema=params if ema else {},
        queue=jax.tree.map(lambda _: sharding.replicated(mesh), shapes.queue),
        kept=jax.tree.map(lambda _: sharding.replicated(mesh), shapes.kept),
    )
    # Run once: on a CPU, compiling it well takes longer than running it.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return graphdef, jax.jit(make, out_shardings=shardings, compiler_options=options), shardings


def abstract_state(init: Callable[[], TrainState], shardings: TrainState) -> TrainState:
    """Shapes, types and shardings of the state, for a checkpoint to be read into."""
    return _with_shardings(jax.eval_shape(init), shardings)


def _with_shardings(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda shape, place: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place), shapes, shardings
    )


def abstract_params(build: Callable[[], nnx.Module], mesh: Mesh) -> tuple[nnx.GraphDef, Params]:
    """Graph definition, and shapes, types and shardings of a model's parameters; nothing is allocated."""
    graphdef = None

    def make() -> Params:
        nonlocal graphdef
        graphdef, params = split_model(build())
        return params

    shapes = jax.eval_shape(make)
    return graphdef, _with_shardings(shapes, sharding.parameter_shardings(shapes, mesh))


class _Gradients(NamedTuple):
    """Gradients, metrics, the next queue and what objectives keep next of a batch, whole or in microbatches; arguments
    of `make_train_step`."""

    graphdef: nnx.GraphDef
    accumulate: int
    steps: int
    freeze: tuple[str, ...]

    def _models(self, params: Params, state: TrainState) -> tuple[nnx.Module, nnx.Module | None]:
        """The model and its moving average."""
        teacher = nnx.merge(self.graphdef, jax.lax.stop_gradient(state.ema)) if state.ema else None
        return nnx.merge(self.graphdef, params), teacher

    def _inputs(self, state: TrainState, teacher: nnx.Module | None) -> dict[str, Any]:
        progress = state.step / self.steps if self.steps else 1.0
        return {"teacher": teacher, "queue": state.queue, "kept": state.kept, "progress": progress}

    def _of(self, state: TrainState, batch: Batch, key: jax.Array, **part_of: Any):
        def loss_fn(params: Params):
            if self.freeze:
                still = jax.lax.stop_gradient
                params = map_by_path(lambda path, x: still(x) if is_frozen(path, self.freeze) else x, params)
            model, teacher = self._models(params, state)
            loss, metrics, queue, seen = model(batch, key, **self._inputs(state, teacher), **part_of)
            return loss, ((metrics, seen), queue)

        (_, (told, queue)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return grads, told, queue

    def __call__(
        self, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[Params, dict[str, jax.Array], Queue | None, Kept]:
        model, teacher = self._models(state.params, state)
        if self.accumulate == 1:
            grads, (metrics, seen), queue = self._of(state, batch, key)
            return grads, metrics, queue, model.next_kept(state.kept, seen)
        of_part = lambda part, **part_of: self._of(state, part, key, **part_of)[:2]  # noqa: E731
        counts = lambda part, **full: model.counts(part, key, **self._inputs(state, teacher), **full)  # noqa: E731
        grads, (metrics, seen), momentum = gradients_of_parts(of_part, counts, model, teacher, batch, self.accumulate)
        queue = state.queue if state.queue is None else push(state.queue, *momentum, batch["pair_id"])
        return grads, metrics, queue, model.next_kept(state.kept, seen)


def make_train_step(
    graphdef: nnx.GraphDef,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    accumulate: int,
    ema_decay: float,
    ema_ramp: bool = False,
    steps: int = 0,
    freeze: tuple[str, ...] = (),
    shardings: TrainState,
    mesh: Mesh,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted step (state, batch) -> (state, metrics); the state is donated.

    A third argument, (B,) int32, is the signal that the process which holds a row has got, or 0: the metrics then hold
    the largest as `SIGNAL`, in all processes.

    Args:
        accumulate: the batch is cut into this many microbatches, one after the other in memory. Loss and gradients
            are those of the whole batch, see `accumulation`; only dropout draws differ.
        ema_decay: of the moving average of the parameters; 0 = off.
        ema_ramp: the decay rises to `ema_decay`, see `ema_decay_at`.
        steps: of the whole run, for what is ramped over it; 0 = nothing is.
        freeze: of parameters that have no gradient, see `parameters.is_frozen`.
    """
    gradients = _Gradients(graphdef, accumulate, steps, tuple(freeze))

    def constrained(params: Params) -> Params:
        model = nnx.merge(graphdef, params)
        model.constrain()
        return split_model(model)[1]

    def step(
        state: TrainState, batch: Batch, signal_B: jax.Array | None = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, metrics, queue, kept = gradients(state, batch, key)
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = constrained(optax.apply_updates(state.params, updates))
        decay = ema_decay_at(state.step, ema_decay) if ema_ramp else ema_decay
        ema = optax.incremental_update(params, state.ema, 1.0 - decay) if ema_decay else state.ema
        if signal_B is not None:
            metrics |= {SIGNAL: jnp.max(signal_B)}
        metrics |= {"grad_norm": optax.tree.norm(grads), "lr": schedule(state.step)}
        return TrainState(state.step + 1, params, opt_state, ema, queue, kept), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)))


def ema_decay_at(step: jax.Array, decay: float) -> jax.Array:
    """min(decay, (1 + t) / (10 + t)) after step t: the average spans the last tenth of a young run, not its start.

    A teacher that is an average of random parameters teaches nothing; TensorFlow's ExponentialMovingAverage does so.
    """
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def compile_ahead(step: Any, mesh: Mesh, *described: Any) -> Callable[[], None]:
    """Compiles a jitted step in a thread, while the state is made or read; returns what waits for the end of that.

    JAX keeps the program: a call of `step` with arrays such as the arguments describe does not compile again.
    The waiting raises what the compilation raised.
    """
    done: Future[None] = Future()

    def work() -> None:
        try:
            with jax.set_mesh(mesh):
                step.lower(*described).compile()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    # A daemon: where the state cannot be made, nothing waits for the compiler.
    threading.Thread(target=work, name="compile-ahead", daemon=True).start()
    return done.result


def parameters_sha256(params: Params) -> str:
    """sha256 over paths, shapes and bytes of the parameters, on the host."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        value = np.asarray(processes.fetch(leaf))
        digest.update(f"{parameter_path(path)} {value.shape} {value.dtype}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
