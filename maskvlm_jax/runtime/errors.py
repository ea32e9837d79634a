"""What the user can mend is one line."""

import contextlib
import errno
import os
import re
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path


class UserError(Exception):
    """A fault in the input, the flags or the machine; `main` prints its message as one line and exits with status 2.

    The message names the thing that is wrong and what to do about it.
    """

    status = 2


class Absent(UserError):
    """Another process of the run did not come; the same command may succeed later (EX_TEMPFAIL of sysexits.h)."""

    status = 75


class Stopped(Exception):
    """A signal asked the run to stop, and its state is saved.

    Args:
        alone: this process ends at once, without the others of the run.

    Attributes:
        status: the exit status a shell gives a process that the signal ended.
    """

    def __init__(self, number: int, saved_step: int | None, *, alone: bool = False):
        self.status, self.alone = 128 + number, alone
        saved = "stopped" if saved_step is None else f"step {saved_step} is saved"
        super().__init__(f"{signal.Signals(number).name}: {saved}; the same command goes on")


# Why a file cannot be written, and what to do about it.
_MENDS = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there or ask for a larger quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "mount it writable or choose another --workdir",
    errno.EACCES: "make it writable or choose another --workdir",
    errno.EIO: "look at that disk",
    errno.ESTALE: "look at that file system",
}


def unwritable(path: Path | str, error: BaseException) -> UserError | None:
    """What to tell of an error met while `path` was written; None where it is none of those above."""
    number = error.errno if isinstance(error, OSError) else None
    text = str(error)
    if found := re.search(r"os_error_code='(\d+)'|\(os error (\d+)\)", text):  # TensorStore's and Rust's
        number = int(found[1] or found[2])
    number = number or next((known for known in _MENDS if os.strerror(known) in text), None)
    in_bucket = str(path).startswith("gs://") or "gs://" in text
    if number not in _MENDS and (is_of_store(error) or (in_bucket and isinstance(error, OSError | ValueError))):
        return UserError(
            f"{path} cannot be written ({first_line(error)}): see that the bucket is there and that the account may "
            "write in it, and the same command goes on"
        )
    if number not in _MENDS:
        return None
    return UserError(
        f"{path} cannot be written ({os.strerror(number)}): {_MENDS[number]}, and the same command goes on"
    )


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Names the file in errors of writing it: those of `write` say only "No space left on device".

    Raises:
        UserError: the disk is full, a limit is reached, or the folder cannot be written.
    """
    try:
        yield
    except Exception as error:  # not OSError alone: libraries wrap it
        known = None if isinstance(error, UserError) else unwritable(path, error)
        if known is None:
            raise
        raise known from error


# Libraries that read and write buckets, each with errors of its own.
_STORES = ("gcsfs", "google", "aiohttp")


def is_of_store(error: BaseException) -> bool:
    """Whether an error comes from a bucket: no account, no right, no network."""
    return type(error).__module__.partition(".")[0] in _STORES


def first_line(error: BaseException) -> str:
    """The first line of an error, cut to a readable length."""
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return text if len(text) < 200 else text[:200] + "..."


def few(names: Iterable[object], most: int = 8) -> str:
    """The first names of a listing, and how many more there are: so that a message stays one line."""
    names = [str(name) for name in names]
    shown = ", ".join(name if len(name) <= 80 else f"{name[:77]}..." for name in names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown
