"""Checkpoints with Orbax: asynchronous, the newest few and the best, read back whole or not at all.

A workdir holds `checkpoints/STEP/` and `best/STEP/`, each with the items params, optimizer, ema, queue and progress
(what the host knows: counts, the best score). Evaluation reads params or ema alone.
"""

import logging
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from maskvlm_jax.errors import UserError
from maskvlm_jax.queue import Queue
from maskvlm_jax.train_step import Params, TrainState


class Checkpoints:
    """The checkpoints of one folder.

    Args:
        folder: made if it is not there.
        keep: how many of the newest are kept.
        writable: remove what a killed process left half-written.
    """

    def __init__(self, folder: Path, *, keep: int = 1, writable: bool = True):
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells every file it touches
        self._folder = folder.absolute()
        self._options = {
            "preservation_policy": ocp.training.preservation_policies.LatestN(keep),
            "cleanup_tmp_directories": writable,
        }
        self._checkpointer = self._open()

    def _open(self) -> ocp.training.Checkpointer:
        return ocp.training.Checkpointer(self._folder, **self._options)

    @property
    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, in order."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def save(self, state: TrainState, progress: dict[str, Any]) -> None:
        """Starts saving; the device arrays are copied before it returns. A step that is there already is kept."""
        step = int(state.step)
        self.wait()
        if step not in self.steps:
            items = {
                "params": state.params,
                "optimizer": {"step": state.step, "state": state.opt_state},
                "ema": state.ema or {"off": 0},
                "queue": {"off": 0} if state.queue is None else state.queue._asdict(),
                "progress": progress,
            }
            self._checkpointer.save_checkpointables_async(step, items, force=True)

    def restore_newest(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read, or None where there is none.

        A damaged one is told in a line and moved aside to STEP.damaged, so that the run can save that step again.

        Raises:
            UserError: there are checkpoints and none can be read.
        """
        steps, reason = self.steps, ""
        for step in reversed(steps):
            try:
                return self._restore(step, abstract)
            except Exception as error:  # Orbax and TensorStore raise whatever the damaged byte made them trip over
                reason = first_line(error)
                aside = self._folder / f"{step}.damaged"
                print(f"warning: checkpoint {self._folder / str(step)} is damaged ({reason}); moved to {aside.name}")
                self._checkpointer.close()
                (self._folder / str(step)).rename(_unused(aside))
                self._checkpointer = self._open()
        if steps:
            raise UserError(f"no checkpoint in {self._folder} can be read ({reason}); train again in another --workdir")
        return None

    def _restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        target = {
            "params": abstract.params,
            "optimizer": {"step": abstract.step, "state": abstract.opt_state},
            "progress": None,
        }
        if abstract.ema:
            target["ema"] = abstract.ema
        if abstract.queue is not None:
            target["queue"] = abstract.queue._asdict()
        items = self._checkpointer.load_checkpointables(step, target)
        optimizer = items["optimizer"]
        queue = None if abstract.queue is None else Queue(**items["queue"])
        state = TrainState(optimizer["step"], items["params"], optimizer["state"], items.get("ema", {}), queue)
        return state, items["progress"]

    def load_progress(self, step: int) -> dict[str, Any]:
        """What the host knew at a step."""
        return self._checkpointer.load_checkpointables(step, {"progress": None})["progress"]

    def load_params(self, step: int, abstract: Params, *, weights: str = "params", part: bool = False) -> Params:
        """The parameters ("params") or their moving average ("ema") of one step; `part`: there may be more of them.

        Raises:
            UserError: they cannot be read into the shapes of `abstract`.
        """
        try:
            context = ocp.Context()
            context.pytree.loading.partial_load = part
            with context:
                return self._checkpointer.load_checkpointables(step, {weights: abstract})[weights]
        except Exception as error:  # as above
            raise UserError(
                f"checkpoint {self._folder / str(step)} cannot be read: {first_line(error)}; choose another checkpoint"
            ) from error

    def wait(self) -> None:
        """Waits until nothing is being saved."""
        self._checkpointer.wait()

    def close(self) -> None:
        self._checkpointer.close()


def first_line(error: Exception) -> str:
    """The first line of an error, cut to a readable length."""
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return text if len(text) < 200 else text[:200] + "..."


def _unused(path: Path) -> Path:
    """`path`, or the first of path-1, path-2, ... that does not exist."""
    candidates = [path, *(path.with_name(f"{path.name}-{i}") for i in range(1, 1000))]
    return next(candidate for candidate in candidates if not candidate.exists())
