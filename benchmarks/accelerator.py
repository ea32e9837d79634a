"""The parts of `benchmarks/accelerator.sh`, and the tables that their results make.

    python benchmarks/accelerator.py OUT [--dry] [--photographs DATA] [--only PART ...] [--seconds 480]
    python benchmarks/accelerator.py OUT --tables

A part is a command that prints JSON on its last line. Results go to OUT/results.jsonl as soon as they are there, all
else that is printed to OUT/log.txt; a part that is there already is not run again, one that failed is. What is timed
compiles side by side, a minute each, and takes its time alone, the others stopped (`command.wait_for_turn`).
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import command
from benchmarks.accelerator_parts import PYTHON, Part, parts
from benchmarks.accelerator_tables import tables

ROOT = Path(__file__).resolve().parent.parent


class Results:
    """OUT/results.jsonl: a line of JSON a part."""

    def __init__(self, out: Path):
        self._path, self._lock = out / "results.jsonl", threading.Lock()
        self._running: dict[str, int] = {}
        self.log = (out / "log.txt").open("a")

    def read(self) -> dict[str, dict[str, Any]]:
        """The newest line of every part."""
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        return {line["part"]: line for line in map(json.loads, lines)}

    def run(self, part: Part) -> None:
        """Runs a part and writes its line, whatever becomes of it."""
        began = time.monotonic()
        environment = {**os.environ, **part.environment}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
        with subprocess.Popen(part.command, cwd=ROOT, env=environment, start_new_session=True, **pipes) as process:
            self._running[part.name] = process.pid
            try:
                out, errors = process.communicate(timeout=part.limit)
                status = str(process.returncode)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # with all that it started, which would slow the others
                out, errors = process.communicate()
                status = f"longer than {part.limit} s"
            del self._running[part.name]
        line = {"part": part.name, "seconds": round(time.monotonic() - began, 1)}
        try:
            line |= {"result": json.loads(out.splitlines()[-1])} if status == "0" else {"failed": status}
        except (ValueError, IndexError):
            line |= {"failed": "it printed no JSON"}
        with self._lock:
            self.log.write(f"=== {part.name}: {' '.join(map(str, part.command))}\n{out}{errors}\n")
            self.log.flush()
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            outcome = f"failed: {line['failed']}" if "failed" in line else "done"
            print(f"{part.name:44}{line['seconds']:7.1f} s  {outcome}", flush=True)

    def take_turns(self, parts: list[Part], patience: float) -> None:
        """Runs parts that compile side by side; each takes its time while the others are stopped.

        Args:
            patience: seconds after which those that are ready no longer wait for the others.
        """
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(max(1, len(parts))) as pool:
            turns = {part.name: Path(folder) / str(i) for i, part in enumerate(parts)}
            runs = {
                part.name: pool.submit(
                    self.run, part._replace(environment={**part.environment, command.TURN: str(turns[part.name])})
                )
                for part in parts
            }
            while waiting := [name for name, run in runs.items() if not run.done()]:
                ready = [name for name in waiting if turns[name].with_suffix(".ready").exists()]
                if ready and (ready == waiting or time.monotonic() - began > patience):
                    self._signal(signal.SIGSTOP, set(waiting) - {ready[0]})
                    turns[ready[0]].with_suffix(".go").touch()
                    runs[ready[0]].result()
                    self._signal(signal.SIGCONT, set(waiting) - {ready[0]})
                time.sleep(0.2)

    def _signal(self, number: int, names: set[str]) -> None:
        """Sends a signal to parts that run, and all that they started."""
        for pid in [pid for name, pid in self._running.items() if name in names]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)


def measure(args: argparse.Namespace) -> int:
    """Runs what is not there yet; returns the number of parts and tests that failed or were not begun."""
    out, began = Path(args.out), time.monotonic()
    if args.dry:  # nobody looks at the times
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    out.mkdir(parents=True, exist_ok=True)
    results = Results(out)
    # Eleven at once on 16 cores had compiled nothing after 200 s; toy programs compile on one core.
    pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // (1 if args.dry else 4)))
    for wave in parts(args):
        there = {name for name, line in results.read().items() if "result" in line}
        left = [part for part in wave if part.name not in there and (not args.only or part.name in args.only)]
        if time.monotonic() - began > args.seconds:
            print("no time left for", ", ".join(part.name for part in left))
            continue
        results.take_turns([part for part in left if part.in_turns], patience=200)
        list(pool.map(results.run, [part for part in left if not part.in_turns]))
    wanted = [part.name for wave in parts(args) for part in wave if not args.only or part.name in args.only]
    there = results.read()
    left = sum("result" not in there.get(name, {}) for name in wanted)
    return left + len(there.get("tests", {}).get("result", {}).get("failed", []))


def run_tests(paths: list[str]) -> int:
    """Tests on this device, as JSON."""
    workers = str(min(8, os.cpu_count() or 1))
    command = [PYTHON, "-m", "pytest", "-n", workers, "-p", "no:cacheprovider", "-o", "addopts=", "-m", "not slow"]
    done = subprocess.run([*command, *paths], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines() or [""]
    print(done.stdout[-20_000:], done.stderr[-2_000:], sep="\n", file=sys.stderr)
    failed = [line.split(" - ")[0].removeprefix("FAILED ") for line in lines if line.startswith("FAILED ")]
    print(json.dumps({"summary": lines[-1].strip("= "), "failed": failed}))
    return done.returncode if done.returncode != 1 else 0  # 1: some failed, which is a result


def main() -> int:
    """Reads the flags; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="folder of the results")
    parser.add_argument("--dry", action="store_true", help="every part at toy size")
    parser.add_argument("--photographs", default="", metavar="DATA", help="a prepared set that is read in `feed`")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="of results.jsonl's names")
    parser.add_argument("--seconds", type=float, default=480, help="after which no more parts are begun")
    parser.add_argument("--tables", action="store_true", help="only print what is there")
    parser.add_argument("--tests", nargs="+", default=[], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tests:
        return run_tests(args.tests)
    missing = 0 if args.tables else measure(args)
    print("\n".join(tables(Results(Path(args.out)).read())))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
