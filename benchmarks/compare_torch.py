"""Our training step beside one in PyTorch, in turns on this machine: speed, memory, work.

    python benchmarks/compare_torch.py --shape torch-tiny --torch-python PYTHON
    python benchmarks/compare_torch.py --shape torch-small --torch "PYTHON -O other_step.py --json" --rate-key rate

PYTHON is an interpreter that has torch; `benchmarks/torch_step.py` runs there, by default. Another command may take its
place: it prints pairs per second in a JSON object on its last line. A round is a fresh process of each side, and every
other round begins with the other side, so that a machine that slows down slows both. Our compiled programs are kept
between rounds. Peak memory is what the kernel tells of the process: Python, libraries, compilation and all.

Leave the machine alone meanwhile: jobs beside it slow the two sides by different amounts. The table tells how many
cores others used.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.command import finish
from benchmarks.shapes import SHAPES
from maskvlm_jax.runtime.errors import UserError

FOLDER = Path(__file__).resolve().parent
OURS, TORCH = "ours", "torch"


class Measured(NamedTuple):
    """One process: pairs per second, peak memory in MiB, seconds from start to end, and all that it printed.

    others: cores that the rest of the machine used meanwhile; nan where the system does not tell.
    """

    rate: float
    peak_mib: float
    seconds: float
    others: float
    printed: dict[str, Any]


def measure(command: list[str], rate_key: str, environment: dict[str, str]) -> Measured:
    """Runs a command that prints JSON on its last line.

    Raises:
        UserError: it failed, or printed no such thing.
    """
    start, busy = time.perf_counter(), busy_seconds()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        try:
            process = subprocess.Popen(command, stdout=out, stderr=errors, env=environment)
        except OSError as error:
            raise UserError(f"{command[0]}: {error.strerror}") from error
        # Of this one child; getrusage would tell the largest of all. This process is small: what it held at the fork,
        # which counts for the child, is less than the child's own.
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        seconds = time.perf_counter() - start
        others = (busy_seconds() - busy - usage.ru_utime - usage.ru_stime) / seconds
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), errors.seek(0)
        lines, complaints = out.read().splitlines(), errors.read().strip().splitlines()
    if process.returncode:
        raise UserError(
            f"{shlex.join(command)} ended with {process.returncode}: {complaints[-1] if complaints else ''}"
        )
    try:
        printed = json.loads(lines[-1])
        rate = float(printed[rate_key])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{shlex.join(command)} printed no JSON with {rate_key} on its last line") from error
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Measured(rate, peak, seconds, others, printed)


def busy_seconds() -> float:
    """Processor seconds that the whole machine has spent."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return float("nan")
    user, nice, system, _idle, _wait, interrupts, soft, stolen = map(int, stat.read_text().split()[1:9])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


def run(args: argparse.Namespace) -> dict[str, list[Measured]]:
    """The rounds of both sides."""
    flags = ["--shape", args.shape, "--steps", str(args.steps)]
    flags += ["--batch-size", str(args.batch_size)] if args.batch_size else []
    ours = [sys.executable, str(FOLDER / "train_step.py"), "--json", *flags]
    ours += [flag for setting in args.set for flag in ("--set", setting)]
    torch = shlex.split(args.torch) or [args.torch_python, str(FOLDER / "torch_step.py"), *flags]
    sides = {OURS: (ours, "pairs_per_second"), TORCH: (torch, args.rate_key)}
    rounds: dict[str, list[Measured]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as cache:
        kept = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        environment = kept | os.environ
        for i in range(args.rounds):
            for side in reversed(sides) if i % 2 else sides:
                command, rate_key = sides[side]
                rounds[side].append(measure(command, rate_key, environment))
                if not args.json:
                    rate = rounds[side][-1].rate
                    print(f"round {i + 1} of {args.rounds}: {side:6}{rate:.4g} pairs/s", file=sys.stderr, flush=True)
    return rounds


def summary(args: argparse.Namespace, rounds: dict[str, list[Measured]]) -> dict[str, Any]:
    """Medians, extremes and shares; the ratio is taken within each round."""
    ours = rounds[OURS][0].printed
    ratios = [own.rate / other.rate for own, other in zip(rounds[OURS], rounds[TORCH], strict=True)]
    return {
        "shape": args.shape,
        "batch_size": ours["batch_size"],
        "rounds": args.rounds,
        "steps": args.steps,
        "device": ours["device"],
        "cores": ours["cores"],
        "dtype": ours["dtype"],
        "pairs_per_second": {side: spread([m.rate for m in values]) for side, values in rounds.items()},
        "ratio": spread(ratios),
        "peak_mib": {side: spread([m.peak_mib for m in values]) for side, values in rounds.items()},
        "process_seconds": {side: spread([m.seconds for m in values]) for side, values in rounds.items()},
        "others": {side: spread([m.others for m in values]) for side, values in rounds.items()},
        "training_gflop_per_pair": ours["training_gflop_per_pair"],
        "gflops": spread([m.printed["gflops"] for m in rounds[OURS]]),
        "matmul_gflops": spread([m.printed["matmul_gflops"] for m in rounds[OURS]]),
        "matmul_ratio": spread([m.printed["matmul_ratio"] for m in rounds[OURS]]),
        "torch": rounds[TORCH][0].printed,
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def table(result: dict[str, Any]) -> str:
    """The summary as aligned lines: median (smallest-largest)."""

    def show(values: dict[str, float], form: str) -> str:
        low, high = format(values["min"], form), format(values["max"], form)
        return f"{format(values['median'], form)} ({low}-{high})"

    def both(name: str, form: str) -> tuple[str, str]:
        return show(result[name][OURS], form), show(result[name][TORCH], form)

    rows = [
        ("pairs/s", *both("pairs_per_second", ".4g")),
        ("ours / torch", show(result["ratio"], ".2f"), ""),
        ("peak memory, MiB", *both("peak_mib", ".0f")),
        ("whole process, s", *both("process_seconds", ".0f")),
        ("cores others used", *both("others", ".1f")),
        ("GFLOP/pair", f"{result['training_gflop_per_pair']:.4g}", ""),
        ("GFLOP/s", show(result["gflops"], ".4g"), ""),
        ("matmul GFLOP/s", show(result["matmul_gflops"], ".4g"), ""),
        ("GFLOP/s / matmul", show(result["matmul_ratio"], ".1%"), ""),
    ]
    title = (
        f"{result['shape']}, batches of {result['batch_size']}, {result['dtype']}, {result['cores']} cores of "
        f"{result['device']}; median (smallest-largest) of {result['rounds']} rounds of {result['steps']} steps"
    )
    return "\n".join([title, *(f"{name:20}{a:28}{b}".rstrip() for name, a, b in [("", OURS, TORCH), *rows])])


def main() -> int:
    """Reads the flags, measures and prints; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default=next(iter(SHAPES)))
    parser.add_argument("--batch-size", type=int, help="pairs a step; the shape's by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="that each process times")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a config value of ours")
    parser.add_argument("--torch-python", default=sys.executable, help="an interpreter with torch")
    parser.add_argument("--torch", default="", metavar="COMMAND", help="another step, in place of torch_step.py")
    parser.add_argument("--rate-key", default="pairs_per_second", help="of the JSON that the torch command prints")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if min(args.rounds, args.steps) < 1:
        parser.error("--rounds and --steps must be 1 or more")
    return finish(lambda: summary(args, run(args)), table, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
