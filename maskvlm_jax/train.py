"""Pre-training: data, build, restore, step, log, evaluate, save."""

import contextlib
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from flax import nnx
from ml_collections import ConfigDict

from maskvlm_jax import config as configs
from maskvlm_jax import evaluate, metrics, optim, sharding, train_step
from maskvlm_jax.checkpoint import Checkpoints
from maskvlm_jax.data import batch as batches
from maskvlm_jax.data import pipeline
from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.data.sources import Source, open_source
from maskvlm_jax.data.tokenizer import Tokenizer
from maskvlm_jax.errors import Stopped, UserError
from maskvlm_jax.pretrainer import Pretrainer
from maskvlm_jax.train_step import TrainState


def run(config: ConfigDict, workdir: Path) -> None:
    """Trains to `config.steps`, from wherever the workdir stands, and writes result.json.

    Raises:
        UserError: whatever is wrong with config, data, workdir or the loss.
        Stopped: a signal asked to stop; the state is saved.
    """
    configs.check(config)
    mesh = sharding.make_mesh(**config.mesh)
    sharding.check_batch(config.batch_size, config.optim.accumulate, mesh)
    sharding.check_batch(config.evaluation.batch_size, 1, mesh)
    source = open_source(config.data.to_dict(), config.data.split, config.model.image.image_size)
    open_source(config.data.to_dict(), config.evaluation.split, config.model.image.image_size)
    pipeline.check_batch_size(source, config.batch_size, config.data.limit)
    _report(source)
    configs.claim_workdir(workdir, config)
    tokenizer = _tokenizer(config, source, workdir)
    with jax.set_mesh(mesh):
        _train(config, workdir, source, tokenizer, mesh)


def _train(config: ConfigDict, workdir: Path, source: Source, tokenizer: Tokenizer, mesh: jax.sharding.Mesh) -> None:
    options = config.optim.to_dict()
    accumulate, ema_decay = options.pop("accumulate"), options.pop("ema_decay")
    tx, schedule = optim.make_optimizer(**options, steps=config.steps)
    arguments = configs.model_arguments(config)
    graphdef, init, shardings = train_step.init_state(
        lambda: Pretrainer(**arguments, rngs=nnx.Rngs(config.seed)), tx, ema=bool(ema_decay), mesh=mesh
    )
    checkpoints = Checkpoints(workdir / "checkpoints", keep=config.keep_checkpoints)
    best = Checkpoints(workdir / "best")
    state, told = _restore_or_init(config, checkpoints, init, shardings)
    start = int(state.step)

    step_fn = train_step.make_train_step(
        graphdef,
        tx,
        schedule,
        seed=config.seed,
        accumulate=accumulate,
        ema_decay=ema_decay,
        shardings=shardings,
        mesh=mesh,
    )
    evaluation = evaluate.Evaluation(config, graphdef, tokenizer, mesh)
    writer = metrics.MetricWriter(workdir, start)
    progress = metrics.Progress(batch_size=config.batch_size, steps=config.steps)
    stream = _stream(config, source, tokenizer, start)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    print(
        f"{config.name}: {parameters:,} parameters, {len(source):,} pictures, {tokenizer.vocab_size} tokens, "
        f"{jax.device_count()} {jax.default_backend()} device(s), {'step ' + str(start) if start else 'a new run'} "
        f"in {workdir}"
    )
    (workdir / "parameters.txt").write_text(parameter_overview.get_parameter_overview(state.params) + "\n")

    checker = _Checker(source, config.data.max_broken, told)
    with stopping_signals() as stop:
        for step in range(start + 1, config.steps + 1):
            clock = time.monotonic()
            batch = next(stream)
            progress.waited(time.monotonic() - clock)
            host = {key: batch.pop(key) for key in batches.HOST_KEYS}
            state, values = step_fn(state, sharding.put(batches.trim(batch, config.data.text_buckets), mesh))

            # One step behind the device, so that it never waits for the host, and a bad loss is caught a step later.
            checker.push(step, values, host, progress)
            due = {name: step % config[name] == 0 for name in ("log_every", "eval_every", "checkpoint_every")}
            last = step == config.steps
            if step == start + 1:
                checker.drain(progress)
                print(f"first step: loss {float(values['loss']):.3f}, compiled in {time.monotonic() - clock:.0f}s")
                progress.restart()
            if due["log_every"] or last:
                checker.drain(progress)
                _log(step, writer, progress)
            if due["checkpoint_every"] or due["eval_every"] or last or stop.signal:
                checker.drain(progress)
                checkpoints.save(state, checker.told)
                if stop.signal:
                    checkpoints.close()
                    raise Stopped(stop.signal, step)
                if due["eval_every"] and not last:
                    with stop.at_once(step):
                        _evaluate(config, evaluation, state, step, writer, best, checker.told)
                progress.restart()
        checkpoints.wait()
        with stop.at_once(config.steps):
            _finish(config, workdir, evaluation, state, writer, best, checker.told)
    for closing in (checkpoints, best, writer):
        closing.close()


def _finish(config, workdir: Path, evaluation, state: TrainState, writer, best, told: dict[str, Any]) -> None:
    print("final evaluation ...", flush=True)
    params = _weights(config, state)
    lineage = evaluate.lineage_of(config, workdir, config.steps, params)
    result = evaluate.final_result(evaluation, config, params, folder=workdir, lineage=lineage)
    writer.write(config.steps, config.evaluation.split, result["metrics"])
    _keep_best(config, state, config.steps, result["metrics"], best, told)
    if told["replaced"]:
        print(f"{told['replaced']} broken picture(s) were replaced during training, the last {told['last_replaced']}")
    evaluate.show(result, workdir)


def _evaluate(config, evaluation, state: TrainState, step: int, writer, best, told: dict[str, Any]) -> None:
    """Recalls of the contrastive features; the rest waits for the end of the run."""
    split = config.evaluation.split
    values = evaluation.retrieval(_weights(config, state), split, rerank=False)
    writer.write(step, split, values)
    _keep_best(config, state, step, values, best, told)
    print(f"step {step}  {split}: " + "  ".join(f"{name} {value:.1f}" for name, value in values.items()), flush=True)


def _keep_best(config, state: TrainState, step: int, values: Mapping[str, float], best, told: dict[str, Any]) -> None:
    name = config.evaluation.best_metric
    if name not in values:
        raise UserError(f"evaluation.best_metric {name} is no metric; choose among {', '.join(values)}")
    if values[name] > told["best"]:
        told |= {"best": values[name], "best_step": step}
        best.save(state, told)


def _weights(config: ConfigDict, state: TrainState) -> Any:
    return state.ema if config.evaluation.weights == "ema" else state.params


def _log(step: int, writer: metrics.MetricWriter, progress: metrics.Progress) -> None:
    if not progress.empty:
        values = progress.values()
        writer.write(step, "train", values)
        print(progress.line(step, values), flush=True)
        progress.restart()


class _Checker:
    """Looks at each step's numbers once they are there: adds them up, and stops on a loss that is not finite.

    `told` is what a checkpoint remembers for the host.
    """

    def __init__(self, source: Source, max_broken: float, told: dict[str, Any]):
        self._source, self._max_broken, self.told, self._pending = source, max_broken, told, None

    def push(self, step: int, values: Mapping, host: Mapping[str, np.ndarray], progress: metrics.Progress) -> None:
        """Looks at the step before and remembers this one."""
        self.drain(progress)
        self._pending = (step, values, host)

    def drain(self, progress: metrics.Progress) -> None:
        """Looks at the step that is remembered, waiting for the device."""
        if self._pending is None:
            return
        step, values, host = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(dict(values)).items()}
        self._check_finite(step, values, host["index"])
        self._count_replaced(host)
        progress.add(values)

    def _check_finite(self, step: int, values: Mapping[str, float], index: np.ndarray) -> None:
        bad = [name for name, value in values.items() if not np.isfinite(value)]
        if bad:
            names = ", ".join(self._source.id(int(i)) for i in index)
            raise UserError(
                f"step {step}: {', '.join(bad)} not finite; the last checkpoint is untouched. Lower --config.optim.lr, "
                f"or look at the batch: {names}"
            )

    def _count_replaced(self, host: Mapping[str, np.ndarray]) -> None:
        self.told["seen"] += len(host["replaced"])
        if not host["replaced"].any():
            return
        self.told["replaced"] += int(host["replaced"].sum())
        self.told["last_replaced"] = name = self._source.id(int(host["index"][host["replaced"]][-1]))
        # A share of a few examples says nothing.
        if self.told["replaced"] > self._max_broken * max(self.told["seen"], 1000):
            raise UserError(
                f"{self.told['replaced']} of {self.told['seen']} pictures read could not be decoded, the last {name}; "
                "mend the data or raise --config.data.max_broken"
            )


class StopRequest:
    """Which signal asked to stop, 0 where none did."""

    def __init__(self):
        self.signal, self._saved_step = 0, None

    def handle(self, number: int, frame: Any) -> None:
        if self.signal or self._saved_step is not None:
            raise Stopped(number, self._saved_step)
        self.signal = number
        print(f"\n{signal.Signals(number).name}: saving after this step; again = stop at once", flush=True)

    @contextlib.contextmanager
    def at_once(self, saved_step: int) -> Iterator[None]:
        """Where all is saved already a signal needs no step to end."""
        self._saved_step = saved_step
        if self.signal:
            raise Stopped(self.signal, saved_step)
        yield
        self._saved_step = None


@contextlib.contextmanager
def stopping_signals() -> Iterator[StopRequest]:
    """SIGTERM and Ctrl-C ask to stop; the old handlers are put back at the end."""
    stop = StopRequest()
    old = {number: signal.signal(number, stop.handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _restore_or_init(config, checkpoints: Checkpoints, init, shardings) -> tuple[TrainState, dict[str, Any]]:
    """The newest checkpoint of the workdir, else new parameters, else those of `config.checkpoint`."""
    restored = checkpoints.restore_newest(train_step.abstract_state(init, shardings))
    if restored is not None:
        return restored
    state = init()
    if config.checkpoint:
        other = Checkpoints(Path(config.checkpoint) / "checkpoints", writable=False)
        if not other.steps:
            raise UserError(f"there is no checkpoint in {config.checkpoint}; set --config.checkpoint to a workdir")
        params = other.load_params(other.steps[-1], train_step.abstract_state(init, shardings).params)
        other.close()
        state = state._replace(params=params, ema=jax.tree.map(lambda x: x.copy(), params) if state.ema else {})
    return state, {"seen": 0, "replaced": 0, "last_replaced": "", "best": -1.0, "best_step": 0}


def _stream(config: ConfigDict, source: Source, tokenizer: Tokenizer, start: int) -> Iterator[dict[str, np.ndarray]]:
    make_example = pipeline.MakeExample(
        source,
        tokenizer,
        image_size=config.model.image.image_size,
        patch=config.model.image.patch,
        max_length=config.model.text.max_length,
        augment=config.data.augment.to_dict(),
        masking_options=config.masking.to_dict(),
    )
    return pipeline.train_stream(
        source,
        make_example,
        batch_size=config.batch_size,
        seed=config.seed,
        start=start,
        stop=config.steps,
        limit=config.data.limit,
        workers=config.data.workers,
        threads=config.data.threads,
        process=jax.process_index(),
        processes=jax.process_count(),
    )


def _tokenizer(config: ConfigDict, source: Source, workdir: Path) -> Tokenizer:
    """The workdir's tokenizer; made on the first start, from the config's folder or the training captions."""
    folder = workdir / "tokenizer"
    if not folder.exists() and jax.process_index() == 0:
        if config.data.tokenizer:
            tokenizers.load(config.data.tokenizer)
            tokenizers.copy(config.data.tokenizer, folder)
        else:
            pictures = range(min(len(source), config.data.tokenizer_captions))
            captions = (caption for i in pictures for caption in source.captions(i))
            tokenizers.save(tokenizers.train_wordpiece(captions, config.model.text.vocab_size), folder)
    tokenizer = tokenizers.load(folder)
    if tokenizer.vocab_size > config.model.text.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {config.model.text.vocab_size}; "
            f"set --config.model.text.vocab_size={tokenizer.vocab_size} or more"
        )
    return tokenizer


def _report(source: Source) -> None:
    if source.report:
        counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in source.report.items())
        print(f"warning: left out of the data: {counts}")
