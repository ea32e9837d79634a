"""Settings of this process that the arithmetic does not see."""

import ctypes
import logging
import os
import platform
import warnings

# glibc's mallopt parameters (malloc.h).
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -8, -4, -1, -2


def keep_freed_memory() -> None:
    """Lets glibc keep what XLA frees after a step instead of giving it back to the kernel.

    On a CPU every step allocates its temporaries anew; returned to the kernel, each page of them faults again, which
    costs a fifth of a small model's step. No effect elsewhere than on Linux with glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 1 << 28)):
            libc.mallopt(parameter, value)


def quiet_libraries() -> None:
    """Keeps the libraries' own notices out of the log; errors stay."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it would tell that it found no torch
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("jax").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="orbax")
