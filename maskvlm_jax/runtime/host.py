"""Settings of this process that the arithmetic does not see."""

import contextlib
import ctypes
import importlib.util
import logging
import multiprocessing
import multiprocessing.resource_tracker
import os
import pkgutil
import platform
import select
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
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


# What XLA is told where it compiles for NVIDIA's GPUs, as in the measurements of docs/performance.md. A flag that
# XLA_FLAGS has already stays as it is there.
_XLA_FLAGS = {
    # Its search for tilings of norms and softmax takes more than half of a step's compilation, on one core: 138 s of it
    # with the pass and 61 s without, at `mini`.
    "xla_disable_hlo_passes": "triton-softmax-rewriter",
    # Every shape of product is compiled in tens of variants, which are timed; cuBLAS has its own ready.
    "xla_gpu_enable_triton_gemm": "false",
    # A layer's kernel is a slice of those of all layers. A product that takes the slice itself adds to no array in
    # place, and stands outside of the CUDA graphs that XLA launches many kernels by: the paper's step of 128 pairs took
    # 261 ms with it and 154 without, each waited for.
    "xla_gpu_enable_dynamic_slice_fusion": "false",
}
_DETERMINISTIC = {"xla_gpu_deterministic_ops": "true"}


def prepare_accelerator(*, deterministic: bool = False) -> None:
    """Settings of XLA and JAX for NVIDIA's GPUs, where JAX has its plugin for them; before any array is made.

    Compiled programs are kept from run to run, in `compiled_programs()` where JAX_COMPILATION_CACHE_DIR names no other
    folder: the step of the paper's model takes a minute to compile.

    Args:
        deterministic: only operations that give the same bits every time. Without it sums by atomic additions, in
            gradients of look-ups and of attention for two, may end in any order.
    """
    plugins = importlib.util.find_spec("jax_plugins")
    names = [module.name for module in pkgutil.iter_modules(plugins.submodule_search_locations)] if plugins else []
    if not any(name.startswith("xla_cuda") for name in names):
        return
    given = os.environ.get("XLA_FLAGS", "")
    wanted = _XLA_FLAGS | (_DETERMINISTIC if deterministic else {})
    added = [f"--{name}={value}" for name, value in wanted.items() if f"--{name}=" not in given]
    os.environ["XLA_FLAGS"] = " ".join([*given.split(), *added])
    keep_compiled_programs()
    # One ready kernel for all random draws: a model's first parameters are hundreds, each of which XLA would compile.
    # The bits are the same.
    _default("JAX_THREEFRY_GPU_KERNEL_LOWERING", "1", True)


def _default(name: str, value: str, read: Any = None) -> None:
    """Sets a variable of JAX's where the user has not; `read` is the value as JAX reads it, the text if None."""
    if name not in os.environ:
        os.environ[name] = value
        if "jax" in sys.modules:
            sys.modules["jax"].config.update(name.lower(), value if read is None else read)


def keep_compiled_programs() -> None:
    """Keeps what takes a second or more to compile, for the next process, where the user has not said otherwise."""
    _default("JAX_COMPILATION_CACHE_DIR", str(compiled_programs()))


def compiled_programs() -> Path:
    """The folder of this user's in which compiled programs are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(base)) / "maskvlm_jax" / "compiled"


def worker_processes(asked: int, *, accelerator: bool) -> int:
    """Processes that prepare batches: `asked`, or chosen by the cores where that is -1.

    Beside an accelerator, whose step the host does not take part in, all cores but two and no more than 16; 0 beside a
    CPU, which has no core to spare.
    """
    if asked >= 0:
        return asked
    return min(max(cores() - 2, 0), 16) if accelerator else 0


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Processes and threads started inside never see Ctrl-C, which a terminal sends to all; this one does at the end.

    SIGTERM they must see: Python ends workers by it.
    """
    multiprocessing.resource_tracker.ensure_running()  # it lets the signal through when it starts
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def end_with_parent() -> None:
    """To be called in a worker process: a parent that was killed cannot end its workers."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


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
    # Batches that workers left in shared memory are removed by a process of Python's own, which gets these options.
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")
    sys.unraisablehook = _tell_unraisable


def _tell_unraisable(ignored: Any) -> None:
    """Python's own `unraisablehook`, but for what TensorStore has in flight when a save fails.

    It reports to Orbax's event loop, which is gone by then, a stack trace each time.
    """
    if str(ignored.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(ignored)


def print_any_text() -> None:
    """Letters that the terminal's encoding lacks are printed as numbers, so that a caption cannot end a run."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where tests or notebooks stand in for it
            stream.reconfigure(errors="backslashreplace")


def output_is_gone() -> bool:
    """Whether who read the output has left, as `head` does; what is still to be printed is then thrown away."""
    looked_at = select.poll()
    looked_at.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in looked_at.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def end_at_once(status: int) -> NoReturn:
    """Ends the process without waiting for what libraries do at its end, from any thread."""
    for worker in multiprocessing.active_children():
        worker.terminate()
    sys.stdout.flush()
    os._exit(status)
