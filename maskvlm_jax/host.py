"""Settings of this process that the arithmetic does not see."""

import ctypes
import logging
import multiprocessing
import os
import platform
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

_HUGE_PAGES = "glibc.malloc.hugetlb"
_ASKED_FOR = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_huge_pages() -> None:
    """Starts this process anew with large blocks of memory in pages of 2 MiB, where it has 4 KiB pages only.

    On a CPU every step allocates its temporaries anew and their pages fault, hundreds of thousands of 4 KiB a step.
    glibc reads the setting when a process starts and never again: to be called before anything else is done. It returns
    where that would change nothing: without glibc 2.35 or newer, or where the kernel gives huge pages to nobody, or to
    all, or the setting is there already.
    """
    environment = _with_huge_pages(os.environ, platform.libc_ver(), _ASKED_FOR)
    if environment is not None and sys.executable:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _with_huge_pages(environment: Mapping[str, str], libc: tuple[str, str], enabled: Path) -> dict[str, str] | None:
    """The environment of a process with huge pages; None where it would change nothing."""
    tunables = environment.get("GLIBC_TUNABLES", "")
    name, version = libc
    if name != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 35) or _HUGE_PAGES in tunables:
        return None
    if not enabled.is_file() or "[madvise]" not in enabled.read_text():
        return None
    return {**environment, "GLIBC_TUNABLES": ":".join(filter(None, (tunables, f"{_HUGE_PAGES}=1")))}


def give_back_freed_memory() -> None:
    """Gives back to the kernel what glibc holds free; worth it after a compiler has freed some hundred MiB."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def quiet_libraries() -> None:
    """Keeps the libraries' own notices out of the log; errors stay."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it would tell that it found no torch
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("jax").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="orbax")
    # Orbax drops its own coroutines where a checkpoint is damaged; we say that in a line of ours.
    warnings.filterwarnings("ignore", category=RuntimeWarning, message="coroutine .* was never awaited")
    # That compiled programs cannot be kept, on a full disk for one, is no fault of the run.
    warnings.filterwarnings("ignore", category=UserWarning, message="Error writing persistent compilation cache")
    sys.unraisablehook = _tell_unraisable


def _tell_unraisable(ignored: Any) -> None:
    """Python's own `unraisablehook`, but for what TensorStore has in flight when a save fails.

    It reports to Orbax's event loop, which is gone by then, a stack trace each time.
    """
    if str(ignored.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(ignored)


def end_at_once(status: int) -> NoReturn:
    """Ends the process without waiting for what libraries do at its end, from any thread."""
    for worker in multiprocessing.active_children():
        worker.terminate()
    sys.stdout.flush()
    os._exit(status)
