"""`task = evaluate`: the scores of a checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx
from ml_collections import ConfigDict

from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.evaluators.evaluation import Evaluation, final_result, show
from maskvlm_jax.evaluators.scored_run import ScoredRun
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime import buckets, sharding
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import plain_values, rules, upgrade
from maskvlm_jax.settings import workdir as workdirs
from maskvlm_jax.training import build, train_step
from maskvlm_jax.training import lineage as lineages
from maskvlm_jax.training.checkpoint import open_run


class Loaded(NamedTuple):
    """A checkpoint's model, ready to be scored under a mesh."""

    config: ConfigDict
    evaluation: Evaluation
    params: Any
    lineage: dict[str, Any]


@contextmanager
def loaded(config: ConfigDict) -> Iterator[Loaded]:
    """The model of `config.checkpoint`, with its mesh set.

    Raises:
        UserError: there is no such workdir, or nothing in it that can be read.
    """
    source = buckets.folder(config.checkpoint)
    if not config.checkpoint or not source.is_dir():
        raise UserError(f"there is no workdir {config.checkpoint!r}; set --config.checkpoint to the folder of a run")
    trained = ConfigDict(upgrade.read(source / "config.json"))
    trained_on = trained.data.copy_and_resolve_references()  # which the set that is scored takes the place of
    trained = plain_values.merge_evaluation(trained, config)
    rules.check(trained)
    tokenizer = tokenizers.load(source / "tokenizer")
    mesh = sharding.make_mesh(**trained.mesh)
    sharding.check_batch(trained.evaluation.batch_size, 1, mesh)
    with jax.set_mesh(mesh):
        graphdef, abstract = train_step.abstract_params(
            lambda: Learner(**build.model_arguments(trained), rngs=nnx.Rngs(0)), mesh
        )
        checkpoints, step = open_run(source, config.checkpoint_step)
        params = checkpoints.load_params(step, abstract, weights=trained.evaluation.weights)
        progress = checkpoints.load_progress(step)
        checkpoints.close()
        lineage = lineages.lineage_of(trained, source, step, params, progress, trained_on)
        run, count = (
            ScoredRun(trained, tokenizer, trained_on),
            partial(lineages.examples_trained_on, trained, trained_on),
        )
        yield Loaded(trained, Evaluation(run, graphdef, mesh, count), params, lineage)


def run(config: ConfigDict, workdir: Path) -> None:
    """`task = evaluate`: scores a checkpoint of a finished or running workdir.

    Raises:
        UserError: there is no such workdir, or nothing in it that can be read.
    """
    if (workdir / "config.json").exists():
        raise UserError(f"{workdir} is the workdir of a run, whose result would be replaced; give another --workdir")
    with loaded(config) as (_, evaluation, params, lineage), workdirs.locked(workdir):
        for split, count in evaluation.examples_trained_on.items():
            lineages.tell_trained_on(split, count)
        result = final_result(evaluation, params, folder=workdir, lineage=lineage)
    show(result, workdir)
