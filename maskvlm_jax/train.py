"""Pre-training and fine-tuning: data, build, restore, step, log, evaluate, save."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from clu import parameter_overview
from flax import nnx
from ml_collections import ConfigDict

from maskvlm_jax import (
    best,
    evaluate,
    files,
    host,
    initial,
    lineage,
    metrics,
    optim,
    processes,
    run_length,
    sharding,
    train_step,
)
from maskvlm_jax import config as configs
from maskvlm_jax import workdir as workdirs
from maskvlm_jax.checkpoint import Checkpoints
from maskvlm_jax.data import batch as batches
from maskvlm_jax.data import ledger, pipeline
from maskvlm_jax.data.sources import Source, count_trained_on, open_source, open_training_source
from maskvlm_jax.data.tokenizer import Tokenizer
from maskvlm_jax.errors import Stopped, UserError
from maskvlm_jax.pretrainer import Pretrainer, objective_class
from maskvlm_jax.stopping import stopping_signals
from maskvlm_jax.train_step import TrainState
from maskvlm_jax.watch import StepWatch, broken_report


def run(config: ConfigDict, workdir: Path) -> None:
    """Trains to `config.steps`, from wherever the workdir stands, and writes result.json.

    Raises:
        UserError: whatever is wrong with config, data, workdir or the loss.
        Stopped: a signal asked to stop; the state is saved.
    """
    configs.check(config)
    workdirs.check_path(workdir)
    initial.check(config, workdir)
    mesh = sharding.make_mesh(**config.mesh)
    sharding.check_batch(config.batch_size, config.optim.accumulate, mesh)
    sharding.check_batch(config.evaluation.batch_size, 1, mesh)
    if config.data.text_buckets and jax.process_count() > 1:
        raise UserError("data.text_buckets needs one process: each would cut its rows to another length; set it to ()")
    source = open_training_source(config.data.to_dict(), config.model.image.image_size)
    best.check(config)
    _open_scored(config, source)
    examples = pipeline.check_batch_size(source, config.batch_size, config.data.get("limit", 0))
    config = config.copy_and_resolve_references()
    run_length.resolve_steps(config, examples)
    _report(source)
    with workdirs.locked(workdir) as alone:
        workdirs.claim(workdir, config, alone=alone)
        _run_in(workdir, config, source, mesh)


def _run_in(workdir: Path, config: ConfigDict, source: Source, mesh: jax.sharding.Mesh) -> None:
    if _is_finished(workdir, config.steps):
        print("this run is finished; to score it anew use configs/evaluate.py")
        evaluate.show(files.read_json(workdir / "result.json"), workdir)
        return
    tokenizer = initial.tokenizer(config, source, workdir)
    with jax.set_mesh(mesh):
        _train(config, workdir, source, tokenizer, mesh)


def _open_scored(config: ConfigDict, source: Source) -> None:
    """Finds before the first step what is wrong with the splits that are scored, and tells which are trained on too.

    Raises:
        UserError: one cannot be opened.
    """
    options, data, size = config.evaluation, config.data.to_dict(), config.model.image.image_size
    splits = dict.fromkeys((options.during, options.split, *options.also))
    scored = {split: (open_source(data, split, size), options.limit) for split in splits}
    for split, count in count_trained_on(source, scored, **lineage.counted(config.data, config.data)).items():
        lineage.tell_trained_on(split, count)


class Built(NamedTuple):
    """What a config and a mesh make of the model: its graph definition, first state, step, and where arrays lie."""

    graphdef: nnx.GraphDef
    init: Callable[[], TrainState]
    step: Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]
    shardings: TrainState


def build(config: ConfigDict, mesh: jax.sharding.Mesh) -> Built:
    """Model, optimizer and jitted step of a config; nothing is allocated before `init` is called."""
    options = config.optim.to_dict()
    accumulate, ema_decay, ema_ramp = (options.pop(name) for name in ("accumulate", "ema_decay", "ema_ramp"))
    tx, schedule = optim.make_optimizer(**options, steps=config.steps)
    arguments = configs.model_arguments(config)
    graphdef, init, shardings = train_step.init_state(
        lambda: Pretrainer(**arguments, rngs=nnx.Rngs(config.seed)), tx, ema=bool(ema_decay), mesh=mesh
    )
    step = train_step.make_train_step(
        graphdef,
        tx,
        schedule,
        seed=config.seed,
        accumulate=accumulate,
        ema_decay=ema_decay,
        ema_ramp=ema_ramp,
        steps=config.steps,
        shardings=shardings,
        mesh=mesh,
    )
    return Built(graphdef, init, step, shardings)


def described(config: ConfigDict, built: Built, mesh: jax.sharding.Mesh) -> tuple[TrainState, dict[str, Any]]:
    """Shapes, types and shardings of the step's arguments, with captions of the full length."""
    image = config.model.image
    shapes = batches.batch_shapes(
        config.batch_size, image_size=image.image_size, patch=image.patch, length=config.model.text.max_length
    )
    state = train_step.abstract_state(built.init, built.shardings)
    return state, sharding.abstract_batch(shapes, mesh)


def make_example(config: ConfigDict, source: Source, tokenizer: Tokenizer) -> pipeline.MakeExample:
    """The transformation from stream position to example."""
    return pipeline.MakeExample(
        source,
        tokenizer,
        image_size=config.model.image.image_size,
        patch=config.model.image.patch,
        max_length=config.model.text.max_length,
        augment=config.data.augment.to_dict(),
        masking_options=config.masking.to_dict(),
        modality_dropout=config.data.modality_dropout,
    )


def _train(config: ConfigDict, workdir: Path, source: Source, tokenizer: Tokenizer, mesh: jax.sharding.Mesh) -> None:
    began = time.monotonic()
    built = build(config, mesh)
    compiled = _compile_ahead(config, built, mesh)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=config.keep_checkpoints)
    kept = Checkpoints(workdir / "best")
    state, told = initial.restore_or_init(config, checkpoints, built)
    start = int(state.step)
    evaluation = evaluate.Evaluation(config, built.graphdef, tokenizer, mesh)
    # A checkpoint is older than the evaluation of its step: what that wrote, and found best, is found again.
    evaluate_again = start > 0 and (start % config.eval_every == 0 or start == config.steps)
    writer = _writer(workdir, start, evaluate_again=evaluate_again)
    progress = metrics.Progress(batch_size=config.batch_size, steps=config.steps)
    rows, counted = sharding.rows_of_process(mesh, config.batch_size)
    _check_stream(config, source, told, start)
    stream = _stream(config, source, tokenizer, start, rows)
    _introduce(config, workdir, source, tokenizer, state)
    read = ledger.Ledger(source.fingerprint, batch_size=config.batch_size, rows=rows, counted=counted)
    reads_negatives = any(
        objective_class(objective.name).reads_negatives for objective in config.objectives.values() if objective.weight
    )
    watch = StepWatch(source, config.data.max_broken, told, read, reads_negatives=reads_negatives)
    with closing(checkpoints), closing(kept), closing(writer), stopping_signals() as stop:
        if evaluate_again and start < config.steps:
            with stop.at_once(start):
                _evaluate(config, evaluation, state, start, writer, kept, watch.told)
        for step in range(start + 1, config.steps + 1):
            clock = time.monotonic()
            batch = next(stream)
            progress.waited(time.monotonic() - clock)
            host_only = {key: batch.pop(key) for key in batches.HOST_KEYS} | {"pair_id": batch["pair_id"]}
            if jax.process_count() > 1:  # a signal may reach one process alone: the step tells the others
                batch["stop"] = np.full(len(rows), stop.signal, np.int32)
            if step == start + 1:
                compiled()
                host.give_back_freed_memory()
            state, values = built.step(state, sharding.put(batches.trim(batch, config.data.text_buckets), mesh))

            # One step behind the device, so that it never waits for the host, and a bad loss is caught a step later.
            watch.push(step, values, host_only, progress)
            checkpoints.check()
            stopped = watch.stop if jax.process_count() > 1 else stop.signal
            due = {name: step % config[name] == 0 for name in ("log_every", "eval_every", "checkpoint_every")}
            last = step == config.steps
            if step == start + 1:
                watch.drain(progress)
                print(f"first step: loss {float(values['loss']):.3f}, {time.monotonic() - began:.0f}s after the start")
                progress.restart()
            if due["log_every"] or last:
                watch.drain(progress)
                _log(step, writer, progress)
            if due["checkpoint_every"] or due["eval_every"] or last or stopped:
                watch.drain(progress)
                writer.flush()
                checkpoints.save(state, watch.remember())
                if stopped:
                    checkpoints.wait()
                    raise Stopped(stopped, step)
                if due["eval_every"] and not last:
                    with stop.at_once(step):
                        _evaluate(config, evaluation, state, step, writer, kept, watch.told)
                progress.restart()
        checkpoints.wait()
        with stop.at_once(config.steps):
            _finish(config, workdir, evaluation, state, writer, kept, watch.told)


def _compile_ahead(config: ConfigDict, built: Built, mesh: jax.sharding.Mesh) -> Callable[[], None]:
    """Compiles the step in a thread and returns what waits for it; where batches are cut, only they tell the shape."""
    if config.data.text_buckets:
        return lambda: None
    state, batch = described(config, built, mesh)
    if jax.process_count() > 1:
        batch |= sharding.abstract_batch({"stop": ((config.batch_size,), np.int32)}, mesh)
    return train_step.compile_ahead(built.step, state, batch, mesh)


def _introduce(config, workdir: Path, source: Source, tokenizer: Tokenizer, state: TrainState) -> None:
    """Prints what is about to be trained and writes the table of its parameters."""
    parameters, start = sum(x.size for x in jax.tree.leaves(state.params)), int(state.step)
    pictures = pipeline.count_examples(source, config.data.get("limit", 0))
    print(
        f"{config.name}: {parameters:,} parameters, {pictures:,} pictures, {tokenizer.vocab_size} tokens, "
        f"{jax.device_count()} {jax.default_backend()} device(s), {'step ' + str(start) if start else 'a new run'} "
        f"in {workdir}"
    )
    if processes.is_main():
        overview = parameter_overview.get_parameter_overview(state.params)
        files.write_text(workdir / "parameters.txt", overview + "\n")


def _finish(config, workdir: Path, evaluation, state: TrainState, writer, kept, told: dict[str, Any]) -> None:
    _evaluate(config, evaluation, state, config.steps, writer, kept, told)
    print("final evaluation ...", flush=True)
    params = _weights(config, state)
    origin = lineage.lineage_of(config, workdir, config.steps, params, told, config.data)
    on_figure = lambda name, sheet: writer.figure(config.steps, name, sheet)  # noqa: E731
    result = evaluate.final_result(evaluation, config, params, folder=workdir, lineage=origin, on_figure=on_figure)
    writer.write(config.steps, config.evaluation.split, result["metrics"])
    if told["broken"] and processes.is_main():
        files.write_json(workdir / "broken.json", told["broken"])
        print(f"examples of the training data: {broken_report(told)}; all are in {workdir / 'broken.json'}")
    evaluate.show(result, workdir)


def _evaluate(config, evaluation, state: TrainState, step: int, writer, kept, told: dict[str, Any]) -> None:
    """The quick scores on the split that picks the best; the rest waits for the end of the run."""
    split = config.evaluation.during
    values = evaluation.quick(_weights(config, state), split)
    writer.write(step, split, values)
    _keep_best(config, state, step, values, kept, told)
    print(f"step {step}  {split}: " + "  ".join(f"{name} {value:.1f}" for name, value in values.items()), flush=True)


def _keep_best(config, state: TrainState, step: int, values: Mapping[str, float], kept, told: dict[str, Any]) -> None:
    value = best.value(config, values)
    if value is not None and value > told["best"]:
        told |= {"best": value, "best_step": step}
        kept.save(state, told)


def _weights(config: ConfigDict, state: TrainState) -> Any:
    return state.ema if config.evaluation.weights == "ema" else state.params


def _log(step: int, writer: metrics.MetricWriter, progress: metrics.Progress) -> None:
    if not progress.empty:
        values = progress.values()
        writer.write(step, "train", values)
        print(progress.line(step, values), flush=True)
        progress.restart()


def _writer(workdir: Path, start: int, *, evaluate_again: bool) -> metrics.MetricWriter | metrics.NoWriter:
    if processes.is_main():
        return metrics.MetricWriter(workdir, start, evaluate_again=evaluate_again)
    return metrics.NoWriter()


def _stream(
    config: ConfigDict, source: Source, tokenizer: Tokenizer, start: int, rows: np.ndarray
) -> Iterator[dict[str, np.ndarray]]:
    return pipeline.train_stream(
        source,
        make_example(config, source, tokenizer),
        batch_size=config.batch_size,
        seed=config.seed,
        start=start,
        stop=config.steps,
        limit=config.data.get("limit", 0),
        workers=host.worker_processes(config.data.workers, accelerator=jax.default_backend() != "cpu"),
        threads=config.data.threads,
        rows=rows.tolist(),
    )


def _check_stream(config: ConfigDict, source: Source, told: Mapping[str, Any], start: int) -> None:
    """A checkpoint's stream must be the one that would be read now."""
    if "stream" in told:
        order = pipeline.order(source, seed=config.seed, limit=config.data.get("limit", 0))
        ledger.check(
            told["stream"],
            source=source.fingerprint,
            step=start,
            batch_size=config.batch_size,
            order=order.__getitem__,
        )


def _is_finished(workdir: Path, steps: int) -> bool:
    path = workdir / "result.json"
    return path.exists() and files.read_json(path)["protocol"]["step"] == steps


def _report(source: Source) -> None:
    if source.report:
        counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in source.report.items())
        print(f"warning: left out of the data: {counts}")
