"""Small files that are read and written whole."""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskvlm_jax.errors import UserError, writing


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: it does not exist or is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file in one step: a killed process leaves the old file or the new one."""
    temporary = path.with_suffix(".partial")
    with writing(path):
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)


_LOCK = ".lock"
# What file systems answer that have no locks, buckets mounted as folders among them.
_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes that ask for it out of a folder; the lock goes with this process, however it ends.

    Raises:
        UserError: another process has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"workdir {folder} cannot be written: {error.strerror}; choose another --workdir") from error
    with file:
        try:
            # Of this process alone: workers that were forked do not have it, and cannot keep it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            owner = file.read().strip()
            told = f" (process {owner})" if owner else ""
            raise UserError(
                f"another run{told} is writing to {folder}; wait for its end, or give another --workdir"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
