"""Checkpoints with Orbax: asynchronous, the newest few and the best, read back whole or not at all.

A workdir holds `checkpoints/STEP/` and `best/STEP/`, each with the items params, optimizer, ema, queue, progress (what
the host knows: counts, the best score) and kept, where objectives keep something. Evaluation reads params or ema alone.
"""

import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path

import jax
from orbax.checkpoint import v1 as ocp

from maskvlm_jax.objectives.feature_queue import Queue
from maskvlm_jax.runtime import buckets, processes
from maskvlm_jax.runtime.errors import UserError, few, first_line, unwritable, writing
from maskvlm_jax.runtime.parameters import map_by_path
from maskvlm_jax.settings import workdir as workdirs
from maskvlm_jax.training.exported import Exported, is_export
from maskvlm_jax.training.progress import Progress
from maskvlm_jax.training.train_step import Params, TrainState


class _WriteErrors(logging.Filter):
    """Takes errors of writing out of Orbax's log, where they are told at once.

    Orbax raises them at the next wait, and where there are several processes not before those that met none have
    come, which do not come: it gives up after 20 minutes.
    """

    def __init__(self):
        super().__init__()
        self.saving, self.first = False, None

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not self.saving or error is None or unwritable("", error) is None:
            return True
        self.first = self.first or error
        return False


_write_errors = _WriteErrors()  # one for all folders: the log does not say which
logging.getLogger("absl").addFilter(_write_errors)


class Checkpoints:
    """The checkpoints of one folder.

    Args:
        folder: made if it is not there.
        keep: how many of the newest are kept.
        writable: remove what a killed process left half-written.
    """

    def __init__(self, folder: Path, *, keep: int = 1, writable: bool = True):
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells every file it touches
        workdirs.check_path(folder)
        self._folder = buckets.absolute(folder)
        _write_errors.saving, _write_errors.first = False, None
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

    def save(self, state: TrainState, progress: Progress) -> None:
        """Starts saving; the device arrays are copied before it returns. A step that is there already is kept."""
        step = int(state.step)
        self.wait()
        _write_errors.saving = True
        if step not in self.steps:
            items = {
                "params": state.params,
                "optimizer": {"step": state.step, "state": state.opt_state},
                "ema": state.ema or {"off": 0},
                "queue": {"off": 0} if state.queue is None else state.queue._asdict(),
                "progress": progress.as_dict(),
                **({"kept": state.kept} if state.kept else {}),
            }
            with writing(self._folder / str(step)):
                self._checkpointer.save_checkpointables_async(step, items, force=True)

    def restore_newest(self, abstract: TrainState) -> tuple[TrainState, Progress] | None:
        """The newest checkpoint that can be read, or None where there is none.

        A damaged one is told in a line and moved aside to STEP.damaged, so that the run can save that step again.

        Raises:
            UserError: there are checkpoints and none can be read.
        """
        steps, reason = self.steps, ""
        for step in reversed(steps):
            restored, reason = None, ""
            try:
                restored = self._restore(step, abstract)
            except Exception as error:  # Orbax and TensorStore raise whatever the damaged byte made them trip over
                reason = first_line(error)
            # The damage may lie in a part that one process alone reads.
            reason = next(filter(None, processes.gather(reason)), "")
            if not reason:
                return restored
            self._set_aside(step, reason)
        if steps:
            raise UserError(f"no checkpoint in {self._folder} can be read ({reason}); train again in another --workdir")
        return None

    def _set_aside(self, step: int, reason: str) -> None:
        """Moves a damaged checkpoint to STEP.damaged, in one process for all."""
        path = self._folder / str(step)
        self._checkpointer.close()
        if processes.is_main():
            aside = _unused(path.with_name(f"{step}.damaged"))
            print(f"warning: checkpoint {path} is damaged ({reason}); moved to {aside.name}")
            path.rename(aside)
        processes.barrier("damaged checkpoint")
        self._checkpointer = self._open()

    def _restore(self, step: int, abstract: TrainState) -> tuple[TrainState, Progress]:
        target = {
            "params": abstract.params,
            "optimizer": {"step": abstract.step, "state": abstract.opt_state},
            "progress": None,
        }
        if abstract.ema:
            target["ema"] = abstract.ema
        if abstract.queue is not None:
            target["queue"] = abstract.queue._asdict()
        if abstract.kept:
            target["kept"] = abstract.kept
        items = self._checkpointer.load_checkpointables(step, target)
        optimizer = items["optimizer"]
        queue = None if abstract.queue is None else Queue(**items["queue"])
        average, kept = items.get("ema", {}), items.get("kept", {})
        state = TrainState(optimizer["step"], items["params"], optimizer["state"], average, queue, kept)
        return state, Progress.of(items["progress"])

    def load_progress(self, step: int) -> Progress:
        """What the host knew at a step.

        Raises:
            UserError: it cannot be read.
        """
        try:
            return Progress.of(self._checkpointer.load_checkpointables(step, {"progress": None})["progress"])
        except Exception as error:  # as above
            raise self._unreadable(step, error) from error

    def load_params(self, step: int, abstract: Params, *, weights: str = "params", part: bool = False) -> Params:
        """The parameters ("params") or their moving average ("ema") of one step; `part`: there may be more of them.

        Raises:
            UserError: they cannot be read into the shapes of `abstract`.
        """
        try:
            context = ocp.Context()
            context.pytree.loading.partial_load = part
            with context:
                found = self._checkpointer.load_checkpointables(step, {weights: abstract})[weights]
            missing: list[str] = []  # Orbax leaves a description in the place of what a part of a checkpoint lacks
            map_by_path(lambda path, x: isinstance(x, jax.ShapeDtypeStruct) and missing.append(path), found)
            if missing:
                raise ValueError(f"it has no {few(missing, 3)}")
            return found
        except Exception as error:  # as above
            raise self._unreadable(step, error) from error

    def _unreadable(self, step: int, error: Exception) -> UserError:
        others = [str(other) for other in self.steps if other != step]
        remedy = f"set --config.checkpoint_step to {' or '.join(others)}" if others else "there is no other beside it"
        return UserError(f"checkpoint {self._folder / str(step)} cannot be read ({first_line(error)[:120]}); {remedy}")

    def check(self) -> None:
        """Looks, without waiting, at what is being saved.

        Raises:
            UserError: it cannot be written.
        """
        if (error := _write_errors.first) is not None:
            found = re.search(r'"([^"]+?)\.orbax-checkpoint-tmp', str(error))
            raise unwritable(found[1] if found else self._folder, error) from error

    def wait(self) -> None:
        """Waits until nothing is being saved.

        Raises:
            UserError: a checkpoint cannot be written.
        """
        errors: list[Exception | None] = []
        # Beside this thread, because Orbax's own wait may not end where it failed.
        waiting = threading.Thread(target=lambda: errors.append(_error_of(self._checkpointer.wait)), daemon=True)
        waiting.start()
        while waiting.is_alive():
            waiting.join(0.1)
            self.check()
        self.check()
        if errors[0] is not None:
            with writing(self._folder):
                raise errors[0]

    def close(self) -> None:
        """Waits and lets go of the folder; does nothing where a checkpoint could not be written, which was told."""
        if _write_errors.first is None:
            self.wait()
            self._checkpointer.close()


def open_run(workdir: Path, wanted: str) -> tuple[Checkpoints | Exported, int]:
    """The checkpoints of a run, or what was exported of it, to be read, and the step that is wanted.

    Args:
        wanted: "latest", "best" (of `best/`) or a number; an export has one step, which is all of these.

    Raises:
        UserError: there is no such checkpoint.
    """
    if is_export(workdir):
        exported = Exported(workdir)
        if wanted not in ("latest", "best", str(exported.step)):
            raise UserError(f"the export {workdir} is of step {exported.step} alone; ask for no other")
        return exported, exported.step
    folder = workdir / ("best" if wanted == "best" else "checkpoints")
    if not folder.is_dir():
        raise UserError(f"there is no checkpoint in {folder}; set --config.checkpoint to the workdir of a run")
    checkpoints = Checkpoints(folder, writable=False)
    if not checkpoints.steps:
        raise UserError(f"there is no checkpoint in {folder}; set --config.checkpoint to the workdir of a run")
    if wanted in ("latest", "best"):
        return checkpoints, checkpoints.steps[-1]
    if not wanted.isdigit() or int(wanted) not in checkpoints.steps:
        there = ", ".join(map(str, checkpoints.steps))
        raise UserError(
            f"there is no checkpoint of step {wanted} in {folder}; "
            f"--config.checkpoint_step takes latest, best and {there}"
        )
    return checkpoints, int(wanted)


def _error_of(act: Callable[[], None]) -> Exception | None:
    """What `act` raises."""
    try:
        act()
    except Exception as error:
        return error
    return None


def _unused(path: Path) -> Path:
    """`path`, or the first of path-1, path-2, ... that does not exist."""
    candidates = [path, *(path.with_name(f"{path.name}-{i}") for i in range(1, 1000))]
    return next(candidate for candidate in candidates if not candidate.exists())
