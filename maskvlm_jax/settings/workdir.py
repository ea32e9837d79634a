"""Which config a workdir belongs to, and which process writes in it."""

import contextlib
import errno
import fcntl
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from maskvlm_jax.runtime import buckets, processes
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import run_folder, upgrade
from maskvlm_jax.settings.plain_values import flatten, to_json

# Keys that may differ between the runs that share a workdir: they change no parameter.
FREE_KEYS = (
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "init",  # where the encoders are that the run has started from
    "data.root",  # also of each set of a mixture; the stream's fingerprint tells other data
    "data.evaluation_set",
    "data.cache_features",
    "data.workers",
    "data.threads",
    "data.max_missing",
    "data.max_broken",
    "evaluation",
    "evals",
    "mesh",
    "model.shared.remat",
    "model.shared.unroll",
)

# Of these what a command makes before anything is trained depends on too: tokenizer, and what encoders are.
_MADE_OF = ("init", "data.root")


def check_path(folder: Path) -> None:
    """To be called before anything is trained or read.

    Raises:
        UserError: Orbax would take the path for a pattern, and find nothing of what it saved there.
    """
    path = str(buckets.absolute(folder))
    if found := re.search(r"[\[\]\\]", path):
        raise UserError(
            f"{path}: no checkpoint can be found in a folder with {found[0]!r} in its path; rename it or take another"
        )


EXPORT = "export.json"  # what an export was made of, in its folder
_LOCK = ".lock"
# What file systems answer that have no locks, buckets mounted as folders among them.
_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)


@contextlib.contextmanager
def locked(folder: Path, *, who: str = "run", kind: str = "workdir", flag: str = "--workdir") -> Iterator[bool]:
    """Keeps other runs that ask for it out of a folder; the lock goes with this process, however it ends.

    Of a run of several processes the one that writes has it. Yields whether no other run can be there, which is not
    known where the file system has no locks.

    Args:
        who, kind, flag: what messages call a run, its folder, and the flag that names another.

    Raises:
        UserError: another run has it.
    """
    if buckets.is_remote(folder):
        if processes.is_main():
            print(f"warning: {folder} is in a bucket, which has no locks; see that no other {who} writes there")
        yield False
        return
    if not processes.is_main():
        yield True
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{kind} {folder} cannot be written: {error.strerror}; choose another {flag}") from error
    with file:
        try:
            # Of this process alone: workers that were forked do not have it, and cannot keep it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            owner = file.read().strip()
            process = f" (process {owner})" if owner else ""
            raise UserError(
                f"another {who}{process} is writing to {folder}; wait for its end, or give another {flag}"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(f"warning: {folder} is on a file system without locks; see that no other {who} writes there")
            yield False
            return
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield True


def differing_keys(old: dict[str, Any], new: dict[str, Any], free: Sequence[str] = FREE_KEYS) -> list[str]:
    """Keys, `free` ones and what is in them aside, whose values differ between two configs."""
    old, new = flatten(old), flatten(new)
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and not _is_in(key, free))


def as_flags(keys: list[str], values: dict[str, Any]) -> str:
    """The flags that give keys their values in a config, to be pasted."""
    there, chosen = flatten(values), {}
    for key in keys:
        block = key.rpartition(".")[0]
        if key not in there and _is_empty_block(values, block):
            chosen[block] = {}
        else:
            chosen[key] = tuple(there[key]) if isinstance(there.get(key), list) else there.get(key)
    return " ".join(shlex.quote(f"--config.{key}={value}") for key, value in chosen.items())


def _is_empty_block(values: Any, block: str) -> bool:
    for name in block.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values == {}


def _is_in(key: str, blocks: Sequence[str]) -> bool:
    of_one_set = re.sub(r"^data\.mixture\.[^.]+\.", "data.", key)
    return f"{of_one_set}.".startswith(tuple(f"{block}." for block in blocks))


def claim(workdir: Path, config: ConfigDict, *, alone: bool) -> None:
    """Writes config.json into a new workdir; a workdir of another run is refused, in every process of a run.

    One in which nothing was saved yet, because its first command was wrong, is no other run: it gets the new config.

    Args:
        alone: no other run can be in the workdir; otherwise one may be there that has not saved yet.

    Raises:
        UserError: the folder cannot be written, holds something else, or its config differs in a key that matters.
    """
    path, wanted = workdir / "config.json", to_json(config)
    begun = run_folder.of_a_run(workdir)
    # What was made in there is used again where another run may be, so it must be of the same values.
    free = FREE_KEYS if begun else tuple(key for key in FREE_KEYS if key not in _MADE_OF)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if (workdir / EXPORT).exists():
            raise UserError(f"{workdir} is an export; start from it by --config.checkpoint, in another --workdir")
        if path.exists():
            there = upgrade.read(path)
            if alone and not begun:
                if processes.is_main():  # what is there may be of other values, or of other data under the same
                    run_folder.discard_made(workdir, given_tokenizer=config.data.tokenizer)
            elif differing := differing_keys(there, wanted, free):
                raise UserError(
                    f"{workdir} belongs to a run with other values of {', '.join(differing)}; "
                    f"use another --workdir, or its values to go on: {as_flags(differing, there)}"
                )
        elif run_folder.holds_results(workdir):
            raise UserError(f"{workdir} holds results but no config.json to go on with; use another --workdir")
        if processes.is_main():
            upgrade.write(path, wanted)
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be written: {error.strerror}; choose another --workdir") from error
