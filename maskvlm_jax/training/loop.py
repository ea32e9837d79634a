"""`task = pretrain` and `task = finetune`: finds what is wrong before anything is written, then trains."""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from maskvlm_jax.data import examples, run_tokenizer, training_stream
from maskvlm_jax.data.sources.opening import count_trained_on, open_source, open_training_source
from maskvlm_jax.data.sources.training_set import TrainingSet
from maskvlm_jax.evaluators import evaluation as evaluations
from maskvlm_jax.runtime import files, sharding
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import rules, run_folder, run_length
from maskvlm_jax.settings import workdir as workdirs
from maskvlm_jax.training import build, cached_features, grouping_features, initial_state, lineage
from maskvlm_jax.training.trainer import Trainer


def run(config: ConfigDict, workdir: Path) -> None:
    """Trains to `config.steps`, from wherever the workdir stands, and writes result.json.

    Raises:
        UserError: whatever is wrong with config, data, workdir or the loss.
        Stopped: a signal asked to stop; the state is saved.
    """
    rules.check(config)
    workdirs.check_path(workdir)
    initial_state.check(config, begun := run_folder.of_a_run(workdir))
    mesh = sharding.make_mesh(**config.mesh)
    sharding.check_batch(config.batch_size, config.optim.accumulate, mesh)
    sharding.check_batch(config.evaluation.batch_size, 1, mesh)
    if config.data.text_buckets and jax.process_count() > 1:
        raise UserError("data.text_buckets needs one process: each would cut its rows to another length; set it to ()")
    source = open_training_source(config.data.to_dict(), config.model.image.image_size)
    evaluations.check_best_metric(config)
    examples.resolve_fields(config, source)
    examples.fields_of(config)
    _open_scored(config, source)
    count = training_stream.check_batch_size(source, config.batch_size)
    config = config.copy_and_resolve_references()
    run_length.resolve_steps(config, count)
    run_tokenizer.resolve_mask_id(config, begun)
    _report(source)
    cached_features.check(config)
    grouping_features.check(config, workdir, begun=begun is not None)
    if frozen := build.frozen_parameters(config):
        print(f"{sum(frozen.values()):,} parameters stay as they are (optim.freeze):", *frozen, sep="\n  ")
    with workdirs.locked(workdir) as alone:
        workdirs.claim(workdir, config, alone=alone)
        _run_in(workdir, config, source, mesh)


def _run_in(workdir: Path, config: ConfigDict, source: TrainingSet, mesh: jax.sharding.Mesh) -> None:
    if _is_finished(workdir, config.steps):
        print("this run is finished; to score it anew use configs/evaluate.py")
        evaluations.show(files.read_json(workdir / "result.json"), workdir)
        return
    tokenizer = run_tokenizer.tokenizer_of(config, source, workdir)
    with jax.set_mesh(mesh):
        source = grouping_features.grouped(config, workdir, source, mesh)
        Trainer(config, workdir, source, tokenizer, mesh).run()


def _open_scored(config: ConfigDict, source: TrainingSet) -> None:
    """Finds before the first step what is wrong with the splits that are scored, and tells which are trained on too.

    Raises:
        UserError: one cannot be opened.
    """
    options, data, size = config.evaluation, config.data.to_dict(), config.model.image.image_size
    splits = dict.fromkeys((options.validation_split, options.split, *options.extra_splits))
    scored = {split: (open_source(data, split, size), options.limit) for split in splits}
    for split, count in count_trained_on(source, scored, part=data["evaluation_set"]).items():
        lineage.tell_trained_on(split, count)


def _is_finished(workdir: Path, steps: int) -> bool:
    path = workdir / "result.json"
    return path.exists() and files.read_json(path)["protocol"]["step"] == steps


def _report(source: TrainingSet) -> None:
    if source.report:
        counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in source.report.items())
        print(f"warning: left out of the data: {counts}")
