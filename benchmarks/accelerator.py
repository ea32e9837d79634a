"""The parts of `benchmarks/accelerator.sh`, and the tables that their results make.

    python benchmarks/accelerator.py OUT [--dry] [--photographs DATA] [--only PART ...] [--seconds 480]
    python benchmarks/accelerator.py OUT --tables

A part is a command that prints JSON on its last line. Results go to OUT/results.jsonl as soon as they are there, all
else that is printed to OUT/log.txt; a part that is there already is not run again, one that failed is. What is timed
compiles side by side, a minute each, and takes its time alone, the others stopped (`command.wait_for_turn`).
"""

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import command

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
TOY = {
    "batch_size": 8,
    "model.image.image_size": 32,
    "model.image.patch": 8,
    "masking.image_cell": 2,
    **{
        f"model.{part}.{key}": value
        for part in ("image", "text", "fusion")
        for key, value in (("width", 32), ("heads", 2))
    },
    **{f"model.{part}.depth": 1 for part in ("image", "text")},
    "model.embed": 16,
    "objectives.masked_image.decoder.width": 32,
    "objectives.masked_image.decoder.heads": 2,
}


class Part(NamedTuple):
    """One command; `limit` in seconds, `environment` on top of this process's own."""

    name: str
    command: list[str]
    limit: int
    environment: dict[str, str] = {}  # noqa: RUF012
    in_turns: bool = False  # whether it waits for its turn before it takes its time


def script(name: str, *flags: object) -> list[str]:
    """A benchmark of this folder."""
    return [PYTHON, f"benchmarks/{name}.py", *map(str, flags)]


def parts(args: argparse.Namespace) -> list[list[Part]]:
    """All parts in the order they are run in; those of one list side by side."""
    dry, out = args.dry, Path(args.out)
    shape = "torch-tiny" if dry else "torch-base"
    steps = ["--steps", 2 if dry else 10, "--json"]
    size = 4 if dry else 128
    toy = [f"{key}={value}" for key, value in TOY.items()] if dry else []
    toy_set, toy_flag = ([word for value in toy for word in (flag, value)] for flag in ("--set", "--flag"))

    def step(name: str, *flags: object) -> Part:
        return Part(f"step/{name}", script("train_step", *flags, *steps), 400, in_turns=True)

    def ours(size: int, **values: object) -> Part:
        settings = [text for key, value in values.items() for text in ("--set", f"model.shared.{key}={value}")]
        name = ",".join([shape, str(size), *(f"{key}={value}" for key, value in values.items())])
        model = ["--size", "tiny", *toy_set] if dry else ["--shape", shape, "--batch-size", size]
        return step(name, *model, *settings)

    def torch(size: int) -> Part:
        flags = ["--shape", shape, "--batch-size", size, "--steps", 2 if dry else 10, "--dtype", "bfloat16"]
        flags += [] if dry else ["--device", "cuda", "--compile", "blocks"]
        return Part(f"torch/{shape},{size}", script("torch_step", *flags), 400, in_turns=True)

    golden = (out / "golden.npz").absolute()
    sizes = ["--size", "tiny", *toy_set] if dry else ["--size", "mini", "--set", "batch_size=32"]
    write = script("numerics", "--write", golden, *sizes, "--json")
    reference = Part("numerics/reference", write, 150, {"JAX_PLATFORMS": "cpu"})

    def compare(dtype: str, precision: str) -> Part:
        flags = ["--dtype", dtype, "--precision", precision, "--json"]
        return Part(f"numerics/{dtype},{precision}", script("numerics", "--against", golden, *sizes, *flags), 150)

    small = "size=tiny" if dry else "size=mini"
    brief = ["--structure", f"{small},data=scenes", "--json", *toy_flag]
    kill = ["--steps", 60, "--kill-at", 10] if dry else ["--steps", 200, "--kill-at", 25]
    untimed = [
        *(compare(*how) for how in (("float32", "highest"), ("float32", "default"), ("bfloat16", "default"))),
        Part("bits/as it is", script("short_runs", "bits", *kill, *brief), 240),
        Part("bits/deterministic", script("short_runs", "bits", *kill, *brief, "--flag", "deterministic=True"), 240),
        Part("curves", script("short_runs", "curves", "--steps", 6 if dry else 300, *brief), 240),
    ]
    tests = ["tests/models/test_primitives.py", *([] if dry else ["tests/models", "tests/objectives"])]
    # Whatever device there is; tolerances are those of float32 in full.
    on_device = {"JAX_PLATFORMS": "", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    untimed.append(Part("tests", [PYTHON, "benchmarks/accelerator.py", str(out), "--tests", *tests], 240, on_device))

    feeds = []
    for structure in [f"{small},data=array_record", "size=small,data=array_record"][: 1 if dry else 2]:
        flags = ["--flag", f"data.root={args.photographs}", "--workers", *([0] if dry else [0, 14])]
        flags += toy_flag if dry else ["--flag", "batch_size=256"]
        run = script("short_runs", "feed", "--structure", structure, "--steps", 8 if dry else 80, *flags, "--json")
        feeds.append(Part(f"feed/{structure}", run, 150))
    beside = [torch(size)] if importlib.util.find_spec("torch") else []  # first: it holds the most memory
    timed = [*beside, ours(size, unroll=True)]
    feeds = feeds if args.photographs else []
    if dry:  # for a machine of few cores
        return [timed, *([part] for part in (*feeds, reference, *untimed))]
    timed += [ours(256, unroll=True), ours(size)]
    timed += [step(f"{name},1024", "--size", name, "--batch-size", 1024) for name in ("mini", "small")]
    plain = step(f"{shape},{size},plain attention", "--shape", shape, "--batch-size", size, "--plain-attention")
    return [timed, *([part] for part in feeds), [reference], untimed, [plain, ours(512, remat="dots")]]


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
            told = f"failed: {line['failed']}" if "failed" in line else "done"
            print(f"{part.name:44}{line['seconds']:7.1f} s  {told}", flush=True)

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
    # Eleven at once on 16 cores had compiled nothing after 200 s.
    pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 4))
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
    """Tests on this device, told as JSON."""
    workers = str(min(8, os.cpu_count() or 1))
    command = [PYTHON, "-m", "pytest", "-n", workers, "-p", "no:cacheprovider", "-o", "addopts=", "-m", "not slow"]
    done = subprocess.run([*command, *paths], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines() or [""]
    print(done.stdout[-20_000:], done.stderr[-2_000:], sep="\n", file=sys.stderr)
    failed = [line.split(" - ")[0].removeprefix("FAILED ") for line in lines if line.startswith("FAILED ")]
    print(json.dumps({"told": lines[-1].strip("= "), "failed": failed}))
    return done.returncode if done.returncode != 1 else 0  # 1: some failed, which is a result


# --- tables ----------------------------------------------------------------------------------------------------------


def tables(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The results as Markdown."""
    found = {name: line["result"] for name, line in results.items() if "result" in line}

    def of(kind: str) -> dict[str, Any]:
        return {name.partition("/")[2]: found[name] for name in found if name.startswith(f"{kind}/")}

    if steps := of("step"):
        yield "| step | pairs/s | ms | TFLOP/s | of square products | memory in GiB | compile in s |"
        yield "|---|---|---|---|---|---|---|"
        for name, x in steps.items():
            memory = (x["device_peak_mib"] or 0) / 1024
            yield (
                f"| {name}, {x['dtype']} | {x['pairs_per_second']:,.0f} | {1e3 * x['seconds_in_a_row']:.1f} | "
                f"{x['gflops'] / 1e3:.1f} | {x['matmul_ratio']:.1%} of {x['matmul_gflops'] / 1e3:.0f} | {memory:.1f} | "
                f"{x['compile_seconds']:.0f} |"
            )
        yield ""
    if torch := of("torch"):
        yield "| PyTorch | pairs/s | ms | memory in GiB | ours over it |"
        yield "|---|---|---|---|---|"
        for name, x in torch.items():
            best = max((y["pairs_per_second"] for key, y in steps.items() if key.startswith(name)), default=0.0)
            memory = (x["device_peak_mib"] or 0) / 1024
            yield (
                f"| {name}, torch {x['torch']} | {x['pairs_per_second']:,.0f} | "
                f"{1e3 * x['seconds_in_a_row']:.1f} | {memory:.1f} | {best / x['pairs_per_second']:.2f} |"
            )
        yield ""
    numerics = {name: x for name, x in of("numerics").items() if "gradients" in x}
    if numerics:
        yield "| error against float32 on a CPU | " + " | ".join(numerics) + " |"
        yield "|---" * (1 + len(numerics)) + "|"
        for title, one in (("losses", "loss"), ("gradients", "gradient"), ("gradient_norms", "its norm")):
            for name in next(iter(numerics.values())).get(title, ()):
                cells = " | ".join(f"{abs(x[title][name]):.4%}" for x in numerics.values())
                yield f"| {one}, {name} | {cells} |"
        yield ""
    for name, x in of("bits").items():
        yield (
            f"bits, {name}: {'equal' if x['equal'] else 'not equal'}; resumed at step {x['resumed_at']}; "
            + ", ".join(f"{run} {sha[:8]}" for run, sha in x["sha256"].items())
        )
    if x := found.get("curves"):
        yield (
            f"curves: {x['steps']} steps, losses at most {x['largest_difference']:.1%} apart; mean recall "
            + ", ".join(f"{name} {value:.1f}" for name, value in x["mean_recall"].items())
        )
    for name, x in of("feed").items():
        for workers, y in x["workers"].items():
            yield (
                f"feed, {name}, {x['cores']} cores, {workers} workers: {y['pairs_per_second']:,.0f} pairs/s, "
                f"data wait {y['data_wait']:.1%}"
            )
    if x := found.get("tests"):
        yield f"tests: {x['told']}" + "".join(f"\n  {name}" for name in x["failed"])
    for name, line in results.items():
        if "failed" in line:
            yield f"failed: {name}: {line['failed']}"


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
