"""An export as what a run can start from and be scored by: the one step of it, read like a checkpoint."""

from pathlib import Path
from typing import Any

import jax

from maskvlm_jax.models.pretrained import files
from maskvlm_jax.runtime import buckets
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.runtime.files import read_json
from maskvlm_jax.settings.workdir import EXPORT
from maskvlm_jax.training import array_names
from maskvlm_jax.training.progress import Progress


def is_export(folder: Path) -> bool:
    """Whether a folder is an export, not a run's workdir."""
    return (folder / EXPORT).is_file()


class Exported:
    """The weights of an export, asked as `checkpoint.Checkpoints` are.

    Raises:
        UserError: it is in a bucket, or its record is damaged.

    Attributes:
        record: what it was made of.
    """

    def __init__(self, folder: Path):
        if buckets.is_remote(folder):
            raise UserError(f"the export {folder} is in a bucket; copy it to a local folder")
        self._folder, self.record = folder, read_json(folder / EXPORT)
        if not isinstance(self.record, dict) or not {"step", "weights", "progress"} <= self.record.keys():
            raise UserError(f"{folder / EXPORT} is no record of an export; copy the folder again")

    @property
    def step(self) -> int:
        """The step of the run that was exported."""
        return self.record["step"]

    def load_progress(self, step: int) -> Progress:
        """What the host knew at the step."""
        return Progress.of(self.record["progress"])

    def load_params(self, step: int, abstract: Any, *, weights: str = "params", part: bool = False) -> Any:
        """The parameters, as and where `abstract` has them; `part`: there may be more of them.

        Raises:
            UserError: they are damaged, others than those of `abstract`, or their moving average is asked for.
        """
        if weights != "params":
            raise UserError(
                f"the export {self._folder} has one set of weights, {self.record['weights']} of the run, "
                "which go by the name params here"
            )
        stored = files.find(str(self._folder), "checkpoint")
        params = array_names.of_names(stored.arrays, abstract, str(self._folder))
        return jax.tree.map(
            lambda own, value: jax.make_array_from_callback(
                own.shape, own.sharding, lambda index: value[index].astype(own.dtype)
            ),
            abstract,
            params,
        )

    def close(self) -> None:
        """Nothing is held."""
