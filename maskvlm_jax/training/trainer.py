"""One run under way: restore, step, log, evaluate, save."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from maskvlm_jax.data import batch as batches
from maskvlm_jax.data import examples, ledger, training_stream
from maskvlm_jax.data.sources.training_set import TrainingSet
from maskvlm_jax.data.tokenizer import Tokenizer
from maskvlm_jax.evaluators import evaluation as evaluations
from maskvlm_jax.evaluators.evaluation import Evaluation
from maskvlm_jax.evaluators.scored_run import ScoredRun
from maskvlm_jax.runtime import files, host, metrics, processes, sharding
from maskvlm_jax.runtime.errors import Stopped
from maskvlm_jax.runtime.stopping import StopRequest, stopping_signals
from maskvlm_jax.settings import rules
from maskvlm_jax.training import build, cached_features, centring, initial_state, lineage, train_step
from maskvlm_jax.training.cached_features import CachedFeatures
from maskvlm_jax.training.checkpoint import Checkpoints
from maskvlm_jax.training.step_watch import StepWatch

Arrays = dict[str, np.ndarray]


class Trainer:
    """Trains one run from wherever its workdir stands; to be made and used under its mesh.

    Args:
        config: of the run, its lengths resolved.
        workdir: of the run, locked and claimed.
        source: what is trained on.
        tokenizer: of the run.
        mesh: what it is trained on.

    Raises:
        UserError: no checkpoint can be read, or the data are not those that the run began with.
    """

    def __init__(
        self, config: ConfigDict, workdir: Path, source: TrainingSet, tokenizer: Tokenizer, mesh: jax.sharding.Mesh
    ):
        self._began = time.monotonic()
        self._config, self._workdir, self._source, self._mesh = config, workdir, source, mesh
        self._built = build.build(config, mesh)
        self._wait_for_compilation = _compile_ahead(config, self._built, mesh)
        self._checkpoints = Checkpoints(workdir / "checkpoints", keep=config.keep_checkpoints)
        self._best = Checkpoints(workdir / "best")
        self._state, progress = initial_state.restore_or_init(config, workdir, self._checkpoints, self._built)
        self._start = start = int(self._state.step)
        count = partial(lineage.examples_trained_on, config, config.data)
        self._evaluation = Evaluation(ScoredRun(config, tokenizer), self._built.graphdef, mesh, count)
        # A checkpoint is older than the evaluation of its step: what that wrote, and found best, is found again.
        self._evaluate_again = start > 0 and (start % config.eval_every == 0 or start == config.steps)
        self._writer = _writer(workdir, start, evaluate_again=self._evaluate_again)
        self._meter = metrics.Meter(batch_size=config.batch_size, steps=config.steps)
        self._rows, counted = sharding.rows_of_process(mesh, config.batch_size)
        _check_stream(config, source, progress.stream, start)
        self._stream = _stream(config, source, tokenizer, start, self._rows)
        self._introduce(tokenizer)
        self._features = self._cached_features()
        if not start and centring.is_due(self._state.params):
            given = self._built.graphdef, self._stream, self._features, mesh
            self._state, self._stream = centring.start(self._state, *given, batch_size=config.batch_size)
        read = ledger.Ledger(source.fingerprint, batch_size=config.batch_size, rows=self._rows, counted=counted)
        needs = [kind.needs(config.objectives[label]) for label, kind in rules.active_objectives(config).items()]
        reads_negatives = any(one.negatives for one in needs)
        self._watch = StepWatch(source, config.data.max_broken, progress, read, reads_negatives=reads_negatives)

    def run(self) -> None:
        """Trains to the last step and writes result.json.

        Raises:
            UserError: whatever is wrong with data, disk or loss.
            Stopped: a signal asked to stop; the state is saved.
        """
        last = self._config.steps
        with (
            closing(self._checkpoints),
            closing(self._best),
            closing(self._writer),
            stopping_signals() as stop,
        ):
            if self._evaluate_again and self._start < last:
                with stop.at_once(self._start):
                    self._evaluate(self._start)
            for step in range(self._start + 1, last + 1):
                values, host_only = self._step(step, stop)
                # A step behind the device, so that it never waits for the host; a bad loss is caught a step later.
                self._watch.push(step, values, host_only, self._meter)
                self._checkpoints.check()
                self._after(step, values, stop)
            self._checkpoints.wait()
            with stop.at_once(last):
                self._finish()

    def _step(self, step: int, stop: StopRequest) -> tuple[Mapping[str, jax.Array], Arrays]:
        """Takes one step; what it computes, and what the host alone knows of its examples."""
        clock = time.monotonic()
        batch = next(self._stream)
        self._meter.waited(time.monotonic() - clock)
        host_only = {key: batch.pop(key) for key in batches.HOST_KEYS} | {"pair_id": batch["pair_id"]}
        if self._features is not None:
            encoder = self._state.params["vlm"]["image_encoder"]
            batch = self._features.add(encoder, batch, host_only["index"], host_only["replaced"])
        if step == self._start + 1:
            self._wait_for_compilation()
            host.give_back_freed_memory()
        arrays = [sharding.put(batches.trim(batch, self._config.data.text_buckets), self._mesh)]
        if jax.process_count() > 1:  # a signal may reach one process alone: the step tells the others
            signals = np.full(len(self._rows), stop.signal, np.int32)
            arrays.append(sharding.put({"signal": signals}, self._mesh)["signal"])
        self._state, values = self._built.step(self._state, *arrays)
        return values, host_only

    def _after(self, step: int, values: Mapping[str, jax.Array], stop: StopRequest) -> None:
        """Logs, saves, evaluates and stops where a step asks for it."""
        config, meter, watch = self._config, self._meter, self._watch
        stopped = watch.stop if jax.process_count() > 1 else stop.signal
        due = {name: step % config[name] == 0 for name in ("log_every", "eval_every", "checkpoint_every")}
        last = step == config.steps
        if step == self._start + 1:
            watch.drain(meter)
            seconds = time.monotonic() - self._began
            print(f"first step: loss {float(values['loss']):.3f}, {seconds:.0f}s after the start")
            meter.restart()
        if due["log_every"] or last:
            watch.drain(meter)
            self._log(step)
        if due["checkpoint_every"] or due["eval_every"] or last or stopped:
            watch.drain(meter)
            self._writer.flush()
            self._checkpoints.save(self._state, watch.remember())
            if stopped:
                self._checkpoints.wait()
                raise Stopped(stopped, step)
            if due["eval_every"] and not last:
                with stop.at_once(step):
                    self._evaluate(step)
            meter.restart()

    def _cached_features(self) -> CachedFeatures | None:
        if not self._config.data.cache_features:
            return None
        shape, dtype = build.feature_shape(self._config)
        encoder, count = self._state.params["vlm"]["image_encoder"], len(self._source)
        return CachedFeatures(
            build.image_encoder(self._config),
            examples=count,
            shape=shape,
            dtype=dtype,
            folder=Path(self._config.data.cache_features),
            key=cached_features.key(self._config, encoder, self._source.fingerprint, count),
            mesh=self._mesh,
        )

    def _introduce(self, tokenizer: Tokenizer) -> None:
        """Prints what is about to be trained and writes the table of its parameters."""
        config, params = self._config, self._state.params
        parameters = sum(x.size for x in jax.tree.leaves(params))
        pictures = training_stream.count_examples(self._source)
        print(
            f"{config.name}: {parameters:,} parameters, {pictures:,} pictures, {tokenizer.vocab_size} tokens, "
            f"{jax.device_count()} {jax.default_backend()} device(s), "
            f"{f'step {self._start}' if self._start else 'a new run'} in {self._workdir}"
        )
        if processes.is_main():
            overview = parameter_overview.get_parameter_overview(params)
            files.write_text(self._workdir / "parameters.txt", overview + "\n")

    def _log(self, step: int) -> None:
        if not self._meter.empty:
            values = self._meter.values()
            self._writer.write(step, "train", values)
            print(self._meter.line(step, values), flush=True)
            self._meter.restart()

    def _weights(self) -> Any:
        return self._state.ema if self._config.evaluation.weights == "ema" else self._state.params

    def _evaluate(self, step: int) -> None:
        """The quick scores on the split that picks the best; the rest waits for the end of the run."""
        split = self._config.evaluation.validation_split
        values = self._evaluation.quick(self._weights(), split)
        self._writer.write(step, split, values)
        value, progress = evaluations.best_value(self._config, values), self._watch.progress
        if value is not None and value > progress.best:
            progress.best, progress.best_step = value, step
            self._best.save(self._state, progress)
        print(
            f"step {step}  {split}: " + "  ".join(f"{name} {value:.1f}" for name, value in values.items()), flush=True
        )

    def _finish(self) -> None:
        """The final evaluation, and what was broken."""
        config, workdir, progress = self._config, self._workdir, self._watch.progress
        self._evaluate(config.steps)
        print("final evaluation ...", flush=True)
        params = self._weights()
        origin = lineage.lineage_of(config, workdir, config.steps, params, progress, config.data)
        on_figure = partial(self._writer.figure, config.steps)
        result = evaluations.final_result(self._evaluation, params, folder=workdir, lineage=origin, on_figure=on_figure)
        self._writer.write(config.steps, config.evaluation.split, result["metrics"])
        if progress.broken and processes.is_main():
            files.write_json(workdir / "broken.json", progress.broken)
            print(f"examples of the training data: {progress.broken_report()}; all are in {workdir / 'broken.json'}")
        evaluations.show(result, workdir)


def _compile_ahead(config: ConfigDict, built: build.Built, mesh: jax.sharding.Mesh) -> Callable[[], None]:
    """Compiles the step in a thread and returns what waits for it; if batches are cut, only they tell the shape."""
    if config.data.text_buckets:
        return lambda: None
    described = build.described(config, built, mesh)
    if jax.process_count() > 1:
        described += (sharding.abstract_batch({"signal": ((config.batch_size,), np.int32)}, mesh)["signal"],)
    return train_step.compile_ahead(built.step, mesh, *described)


def _writer(workdir: Path, start: int, *, evaluate_again: bool) -> metrics.MetricWriter | metrics.NoWriter:
    if processes.is_main():
        return metrics.MetricWriter(workdir, start, evaluate_again=evaluate_again)
    return metrics.NoWriter()


def _stream(
    config: ConfigDict, source: TrainingSet, tokenizer: Tokenizer, start: int, rows: np.ndarray
) -> Iterator[Arrays]:
    return training_stream.train_stream(
        source,
        examples.make_example(config, source, tokenizer),
        batch_size=config.batch_size,
        seed=config.seed,
        start=start,
        stop=config.steps,
        workers=host.worker_processes(config.data.workers, accelerator=jax.default_backend() != "cpu"),
        threads=config.data.threads,
        rows=rows.tolist(),
    )


def _check_stream(config: ConfigDict, source: TrainingSet, stream: Mapping[str, str] | None, start: int) -> None:
    """A checkpoint's stream must be the one that would be read now."""
    if stream is not None:
        order = training_stream.order(source, seed=config.seed)
        ledger.check(
            stream,
            source=source.fingerprint,
            step=start,
            batch_size=config.batch_size,
            order=order.__getitem__,
        )
