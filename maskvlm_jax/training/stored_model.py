"""The model that a workdir or an export holds, read onto the devices."""

from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import rules, upgrade
from maskvlm_jax.training import build, train_step
from maskvlm_jax.training.checkpoint import open_run
from maskvlm_jax.training.exported import is_export
from maskvlm_jax.training.progress import Progress

WEIGHTS = ("params", "ema")


class StoredModel(NamedTuple):
    """A model: its config, graph definition and parameters, and the step of the run that they are of."""

    config: ConfigDict
    graphdef: nnx.GraphDef
    params: Any
    step: int
    progress: Progress


def read(folder: Path, mesh: Mesh, *, step: str = "latest", weights: str = "params", dtype: str = "") -> StoredModel:
    """Reads a model; to be called under its mesh.

    Args:
        folder: a workdir or an export.
        step: "latest", "best" or a number.
        weights: "params" or "ema", their moving average.
        dtype: of products and activations; "" = that of the config.

    Raises:
        UserError: there is no such model, or it cannot be read.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"there is no workdir {str(folder)!r}; give the folder of a run or an export")
    if weights not in WEIGHTS:
        raise UserError(f"weights is {weights!r}; give {' or '.join(WEIGHTS)}")
    config = ConfigDict(upgrade.read(folder / "config.json"))
    if dtype:
        config.model.shared.dtype = dtype
    rules.check(config)
    if weights == "ema" and not config.optim.ema_decay and not is_export(folder):
        raise UserError(f"{folder} kept no moving average; leave the choice of weights out")
    graphdef, abstract = train_step.abstract_params(
        lambda: Learner(**build.model_arguments(config), rngs=nnx.Rngs(0)), mesh
    )
    checkpoints, number = open_run(folder, step)
    params = checkpoints.load_params(number, abstract, weights=weights)
    progress = checkpoints.load_progress(number)
    checkpoints.close()
    return StoredModel(config, graphdef, params, number, progress)
