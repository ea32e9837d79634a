"""What short runs of the trainer itself show on a device: the same bits twice, two precisions, a fed accelerator.

    python benchmarks/short_runs.py bits --steps 40 --kill-at 25
    python benchmarks/short_runs.py bits --steps 40 --kill-at 25 --flag deterministic=True
    python benchmarks/short_runs.py curves --steps 300
    python benchmarks/short_runs.py feed --structure size=mini,data=array_record --flag data.root=FOLDER

bits: a run twice, and once more killed and resumed: sha256 of their parameters. curves: the losses of a run in bfloat16
and in float32. feed: pairs a second and the share of the time that steps waited for data, by worker processes.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.command import finish
from maskvlm_jax.runtime.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
# A final evaluation that takes no time.
QUICK = {"limit": 64, "extra_splits": "()", "figures": 0, "probe_limit": 16, "match_images": 8, "choose_images": 16}
QUICK |= {"rerank_k": 4, "batch_size": 64}


class Runs:
    """Runs of `maskvlm_jax.main` below one folder."""

    def __init__(self, folder: Path, structure: str, flags: list[str]):
        self._folder, self._structure, self._flags = folder, structure, flags

    def train(self, name: str, *, kill_at: int = 0, **values: Any) -> Path:
        """Trains in the workdir `name`, to the end or until killed; returns the workdir.

        Args:
            kill_at: the run is killed once this step is logged and a checkpoint is there; 0 = never.
            values: of the config.

        Raises:
            UserError: the run failed.
        """
        workdir = self._folder / name
        flags = {f"evaluation.{key}": value for key, value in QUICK.items()} | values
        command = [sys.executable, "-m", "maskvlm_jax.main", f"--config=configs/pretrain.py:{self._structure}"]
        command += [f"--workdir={workdir}", *(f"--config.{key}={value}" for key, value in flags.items())]
        command += [f"--config.{flag}" for flag in self._flags]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            lines = []
            for line in process.stdout:
                lines.append(line)
                logged = re.match(r"step (\d+)/", line)
                if kill_at and logged and int(logged[1]) >= kill_at and _has_checkpoint(workdir):
                    process.send_signal(signal.SIGKILL)
        with (workdir.parent / f"{name}.log").open("a") as log:
            log.write("".join(lines))
        if process.returncode and not (kill_at and process.returncode == -signal.SIGKILL):
            raise UserError(f"the run {name} ended with {process.returncode}: {lines[-1].strip() if lines else ''}")
        return workdir

    def log(self, name: str) -> str:
        """What the runs in a workdir printed."""
        return (self._folder / f"{name}.log").read_text()


def _has_checkpoint(workdir: Path) -> bool:
    """Whether one is complete: until then the name has an ending."""
    return any(folder.name.isdigit() for folder in (workdir / "checkpoints").glob("*"))


def bits(runs: Runs, args: argparse.Namespace) -> dict[str, Any]:
    """Hashes of the parameters of two equal runs and of one that was killed and resumed."""
    values = {"steps": args.steps, "log_every": 1, "eval_every": args.steps}
    values["checkpoint_every"] = min(10, args.kill_at)

    def interrupted() -> Path:
        runs.train("killed", kill_at=args.kill_at, **values)
        return runs.train("killed", **values)

    folders = [runs.train("first", **values)]  # the others find its compiled programs
    with ThreadPoolExecutor() as pool:
        started = [pool.submit(runs.train, "second", **values), pool.submit(interrupted)]
        folders += [task.result() for task in started]
    hashes = [_result(folder)["protocol"]["parameters_sha256"] for folder in folders]
    resumed = re.findall(r"device\(s\), (?:step (\d+)|a new run)", runs.log("killed"))
    return {
        "sha256": dict(zip(("first", "second", "killed and resumed"), hashes, strict=True)),
        "resumed_at": int(resumed[-1] or 0),
        "equal": len(set(hashes)) == 1,
    }


def curves(runs: Runs, args: argparse.Namespace) -> dict[str, Any]:
    """The losses of two precisions: how far apart they are on the way, and where they end."""
    every = max(1, args.steps // 30)
    values = {"steps": args.steps, "log_every": every, "eval_every": args.steps, "checkpoint_every": args.steps}
    with ThreadPoolExecutor() as pool:
        names = ("bfloat16", "float32")
        folders = list(pool.map(lambda d: runs.train(d, **values, **{"model.shared.dtype": d}), names))
    narrow, wide = (_training(folder) for folder in folders)
    return {
        "steps": args.steps,
        "loss": {"bfloat16": [x["loss"] for x in narrow], "float32": [x["loss"] for x in wide]},
        "largest_difference": max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(narrow, wide, strict=True)),
        "mean_recall": {name: _result(f)["metrics"]["mean_recall"] for name, f in zip(names, folders, strict=True)},
    }


def feed(runs: Runs, args: argparse.Namespace) -> dict[str, Any]:
    """Speed and waiting of the trainer with several numbers of workers."""
    values = {"steps": args.steps, "log_every": max(1, args.steps // 4), "eval_every": args.steps}
    values |= {"checkpoint_every": args.steps}
    found = {}
    for workers in args.workers:
        last = _training(runs.train(f"workers-{workers}", **values, **{"data.workers": workers}))[-1]
        found[str(workers)] = {name: last[name] for name in ("pairs_per_second", "data_wait")}
    return {"structure": args.structure, "cores": len(os.sched_getaffinity(0)), "workers": found}


def _training(workdir: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == "train"]


def _result(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "result.json").read_text())


KINDS = {"bits": bits, "curves": curves, "feed": feed}


def main() -> int:
    """Reads the flags, measures and prints; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--structure", default="size=mini,data=scenes", help="of configs/pretrain.py")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--kill-at", type=int, default=25, help="bits: the third run is killed after it")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 8], help="feed: worker processes to try")
    parser.add_argument("--flag", action="append", default=[], metavar="KEY=VALUE", help="any config value; repeatable")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()

    def measure() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            return KINDS[args.kind](Runs(Path(folder), args.structure, args.flag), args)

    return finish(measure, lambda result: json.dumps(result, indent=2), as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
