"""Command lines, each in a process of its own that has the imports already.

    python tests/forks.py

reads one JSON list a line, the seconds it may take and the arguments; prints one: exit status, output and errors. What
a process does after its command's last line, the end of the interpreter, is left out.
"""

import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_alone(work: Callable[[], int], out: Path, errors: Path, seconds: int) -> int:
    """Runs `work` in a fork with its output in files; returns its status, 124 where it took too long.

    Processes that it started, and left, end with it.
    """
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            for number, path in ((1, out), (2, errors)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            status = work()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    late = []

    def end(*_) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, lambda *_: (late.append(True), end()))
    signal.alarm(seconds)
    _, status = os.waitpid(child, 0)
    signal.alarm(0)
    end()
    return 124 if late else os.waitstatus_to_exitcode(status)


def serve() -> None:
    """Runs the command lines of standard input."""
    from maskvlm_jax import main
    from maskvlm_jax.ablate import ablation  # noqa: F401  imported here, once
    from maskvlm_jax.training import loop, scoring  # noqa: F401

    os.chdir(ROOT)
    sys.modules["__main__"] = main  # whose text --help begins with
    with tempfile.TemporaryDirectory() as folder:
        out, errors = Path(folder) / "out", Path(folder) / "errors"
        for line in sys.stdin:
            seconds, flags = json.loads(line)
            sys.argv = argv = ["maskvlm_jax/main.py", *flags]
            status = run_alone(lambda argv=argv: main.main(argv), out, errors, seconds)
            print(json.dumps([status, *(path.read_text(errors="replace") for path in (out, errors))]), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    serve()
