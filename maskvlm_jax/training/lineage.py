"""Where parameters come from, and which scored examples they were trained on."""

import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from maskvlm_jax.data.sources.opening import count_trained_on, open_source, open_training_source
from maskvlm_jax.models.pretrained import encoders
from maskvlm_jax.runtime import files
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.training import grouping_features, train_step
from maskvlm_jax.training.exported import Exported, is_export
from maskvlm_jax.training.progress import Progress


def lineage_of(
    config: ConfigDict, workdir: Path, step: int, params: Any, progress: Progress, trained_on: ConfigDict
) -> dict[str, Any]:
    """Where parameters come from.

    Args:
        config: of the evaluation: `data` may be another set than the model was trained on.
        progress: of the run when the parameters were saved.
        trained_on: `data` of the training.
    """
    return {
        "checkpoint": workdir.name,
        "run": config.name,
        "trained_on": _trained_on(trained_on),
        "initialised_from": _initialised_from(config, workdir),
        "step": step,
        "stream": progress.stream["rows"],  # fingerprint of the examples that were read, see `data.ledger`
        "parameters_sha256": train_step.parameters_sha256(params),
        **_grouped_by(workdir, trained_on),
    }


def _grouped_by(workdir: Path, trained_on: ConfigDict) -> dict[str, Any]:
    grouped = trained_on.get("grouping", {}).get("checkpoint")
    record = grouping_features.record(workdir) if grouped else None
    return {"grouped_by": record} if record else {}


def examples_trained_on(config: ConfigDict, trained_on: ConfigDict) -> dict[str, int]:
    """How many examples of each scored split were trained on; without those where nobody can tell.

    That is where another set is scored, or the one that was trained on is not there any more.
    """
    if any(config.data.get(key) != trained_on.get(key) for key in ("source", "mixture")):
        return {}
    if _root(config.data, config.data) != _root(trained_on, config.data):
        return {}
    options, data, size = config.evaluation, config.data.to_dict(), config.model.image.image_size
    try:
        trained = open_training_source(trained_on.to_dict(), size)
    except UserError:  # its pictures may lie elsewhere by now
        return {}
    splits = dict.fromkeys((options.split, *options.extra_splits))
    scored = {split: (open_source(data, split, size), options.limit) for split in splits}
    return count_trained_on(trained, scored, part=data["evaluation_set"])


def _initialised_from(config: ConfigDict, workdir: Path) -> Any:
    """Another run's checkpoint, encoders that were trained elsewhere, or "random"."""
    if is_export(workdir):
        return Exported(workdir).record.get("initialised_from", "unknown")
    if config.checkpoint:
        return f"{config.checkpoint} {config.checkpoint_step}"
    path = workdir / encoders.FILE
    if not path.is_file():
        return "random"
    written = files.read_json(path)
    return {modality: {key: one[key] for key in ("name", "family", "sha256")} for modality, one in written.items()}


def _root(data: ConfigDict, scored: ConfigDict) -> str:
    """Where the set that is scored lies; of a mixture each set has a root of its own."""
    return os.path.realpath((data.mixture[scored.evaluation_set] if data.mixture else data).root)


def tell_trained_on(split: str, count: int) -> None:
    """Warns of a split of which `count` examples are trained on."""
    if count:
        print(
            f"warning: {count:,} of the examples of split {split} are trained on too; their scores tell how well they "
            "are remembered"
        )


def _trained_on(data: ConfigDict) -> str:
    """SOURCE/SPLIT; of a mixture the name and split of each set."""
    if data.mixture:
        return " + ".join(f"{name}/{part.split}" for name, part in data.mixture.items())
    return f"{data.source}/{data.split}"
