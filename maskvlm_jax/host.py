"""Settings of this process that the arithmetic does not see."""

import ctypes
import logging
import multiprocessing
import os
import platform
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NoReturn

# glibc's mallopt parameters (malloc.h): what we set, and glibc's own values.
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -8, -4, -1, -2
_KEEP = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 1 << 28}
_DEFAULT = {_MMAP_MAX: 65_536, _TRIM_THRESHOLD: 128 * 1024, _TOP_PAD: 128 * 1024}

_ROOM, _FILLER = 2**29, 2**27

LARGE_SHARE = 0.5  # of the machine's memory


def keep_freed_memory() -> None:
    """Lets glibc keep what XLA frees after a step instead of giving it back to the kernel.

    On a CPU every step allocates its temporaries anew; returned to the kernel, each page of them faults again, which
    costs a fifth of a small model's step. No effect elsewhere than on Linux with glibc.
    """
    _mallopt(_KEEP)


def release_memory_if_large() -> None:
    """Goes back to glibc's own settings where the process holds more than `LARGE_SHARE` of the machine's memory.

    Kept memory fragments; a model whose temporaries are a good part of the machine's memory must not pay for that.
    """
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return
    held = int(statm.read_text().split()[1])
    if held > LARGE_SHARE * os.sysconf("SC_PHYS_PAGES") and _mallopt(_DEFAULT):
        give_back_freed_memory()


def give_back_freed_memory() -> None:
    """Gives back to the kernel what is free now, once; what is freed later is kept as before."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def settle_memory() -> None:
    """Gives back what is free now, and keeps what is allocated from here out of the block that temporaries need.

    To be called once, after a program's first run. What its compilation left is not used again. The block that its
    first temporaries leave among other allocations is a trap: the next ones, aligned anew, fit in or do not by a few
    bytes, and where they once did something small is put beside them: each time a new block of all temporaries of a
    step. So the holes of that size are filled, with memory that is never touched and takes none, but for a smaller one
    that has room for all else that a step allocates.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    time.sleep(0.1)  # temporaries are freed a moment after the results are there
    give_back_freed_memory()
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
    room = libc.malloc(_ROOM)
    libc.malloc(_FILLER // 128)  # keeps the room from growing together with what follows
    end = libc.sbrk(0)
    while (block := libc.malloc(_FILLER)) and block + _FILLER < end:
        pass
    libc.free(block)  # of the heap's end, where temporaries shall be
    libc.free(room)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _mallopt(values: dict[int, int]) -> bool:
    """Sets parameters of glibc's allocator; False where there is none."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    for parameter, value in values.items():
        libc.mallopt(parameter, value)
    return True


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
