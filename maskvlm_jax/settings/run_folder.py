"""What a workdir holds: a run that has begun, or what commands made that were stopped before.

Without JAX, which command lines that are refused do not wait for.
"""

import re
import shutil
from pathlib import Path

from maskvlm_jax.models.pretrained import encoders

# By what examples are grouped, and what it was made of.
GROUPING_FEATURES, GROUPING_RECORD = "grouping.npy", "grouping.json"
_MADE = ("tokenizer", encoders.FILE, GROUPING_FEATURES, GROUPING_RECORD)
_SAVED = re.compile(r"\d+(\.damaged(-\d+)?)?")  # a save that was cut off has another name


def of_a_run(workdir: Path) -> Path | None:
    """A workdir in which something has been trained, which its run goes on with; None for one that has nothing to keep.

    A command that found something wrong after it had claimed the workdir leaves files that no run has used.
    """
    return workdir if (workdir / "config.json").exists() and holds_results(workdir) else None


def holds_results(workdir: Path) -> bool:
    """Whether something was saved here, by a run or by an evaluation."""
    folders = [workdir / name for name in ("checkpoints", "best") if (workdir / name).is_dir()]
    saved = any(_SAVED.fullmatch(path.name) for folder in folders for path in folder.iterdir())
    return saved or (workdir / "result.json").exists()


def discard_made(workdir: Path, *, given_tokenizer: str) -> None:
    """Removes what commands made of values that may be others now, in a workdir on this machine without a run.

    Args:
        given_tokenizer: the folder that the config names, "" if none, which stays where it is this workdir's own.
    """
    for path in (workdir / name for name in _MADE):
        if given_tokenizer and path.resolve() == Path(given_tokenizer).resolve():
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
