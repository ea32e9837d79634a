"""Ablation grids: every row with every seed, one training run each, and what they come to.

    python -m maskvlm_jax.ablate --config=configs/ablations.py:table=losses

Each run is a command of its own (`maskvlm_jax.main`), shown in the log beside its workdir; several may run side by
side, each on its share of the cores, and share what they compile, under `compiled/`. A grid that was stopped goes on
where it was by the same command: finished runs are read, those under way resume. `table.md`, `table.csv` and
`plot.png` are written anew behind every run.
"""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ml_collections import ConfigDict

from maskvlm_jax.ablate import grids
from maskvlm_jax.ablate.grids import Scores
from maskvlm_jax.runtime import buckets, metrics
from maskvlm_jax.runtime.errors import Stopped, UserError
from maskvlm_jax.runtime.files import read_json
from maskvlm_jax.settings import ranges, run_folder
from maskvlm_jax.settings import workdir as workdirs
from maskvlm_jax.settings.plain_values import flatten


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One row with one seed: its folder, and the commands that fill it, in order, by the folder that each writes."""

    row: str
    seed: int
    folder: Path
    commands: dict[str, list[str]]


def runs(config: ConfigDict, workdir: Path) -> Iterator[Run]:
    """Every run of a grid, seed by seed, so that a grid that is cut short still has every row."""
    for seed in config.seeds:
        for row, recipe, flags in config.rows:
            folder = workdir / _slug(row) / f"seed{seed}"
            structure = f"recipe={recipe},{config.structure}"
            common = [f"--config.seed={seed}", f"--config.batch_size={config.batch_size}"]
            common += [f"--config.{flag}" for flag in config.flags]
            common += [f"--config.data.root={config.data_root}"] if config.data_root else []
            pretrain, finetune = folder / "pretrain", folder / "finetune"
            commands = {
                "pretrain": [
                    f"--config={config.pretrain}:{structure}",
                    f"--workdir={pretrain}",
                    f"--config.steps={config.steps}",
                    *_periods(config.steps),
                    *common,
                    *(f"--config.{flag}" for flag in flags),
                ]
            }
            if config.finetune_steps:
                steps = config.finetune_steps
                commands["finetune"] = [
                    f"--config={config.finetune}:{structure}",
                    f"--workdir={finetune}",
                    f"--config.checkpoint={pretrain}",
                    f"--config.steps={steps}",
                    *_periods(steps),
                    *common,
                    *(f"--config.{flag}" for flag in flags if flag.startswith(("data.", "model."))),
                ]
            if config.get("score", ""):
                flags = [f"--workdir={folder / 'score'}", f"--config.checkpoint={pretrain}"]
                commands["score"] = [f"--config={config.score}", *flags]
            yield Run(row, seed, folder, commands)


def _periods(steps: int) -> list[str]:
    """Flags of a run of this length: a tenth of it warm-up, one evaluation, a few checkpoints to resume from."""
    periods = {"optim.warmup_steps": steps // 10, "eval_every": steps, "checkpoint_every": max(1, steps // 4)}
    return [f"--config.{name}={value}" for name, value in periods.items()]


def scores_of(run: Run) -> dict[str, float] | None:
    """The metrics of a finished run, those of fine-tuning with `ft_` in front; None where it is not finished."""
    values = {}
    for stage in run.commands:
        path = run.folder / stage / "result.json"
        if not path.exists():
            return None
        prefix = "ft_" if stage == "finetune" else ""
        values |= {prefix + name: value for name, value in read_json(path)["metrics"].items()}
    return values


def run_grid(
    config: ConfigDict,
    workdir: Path,
    execute: Callable[[list[str], Path], None],
    stop: Callable[[], None] = lambda: None,
) -> Scores:
    """Runs what is not finished, `config.parallel` at a time; returns the scores of all.

    Args:
        execute: runs a command of `maskvlm_jax.main`, its output to a log file.
        stop: ends those that run, their states saved; called when one of them fails.
    """
    grid, found = list(runs(config, workdir)), {}
    with ThreadPoolExecutor(config.parallel) as pool:
        futures = {pool.submit(_finish, run, execute): run for run in grid}
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                run = futures[future]
                found[run], took = future.result()
                shown = "  ".join(f"{name} {found[run][name]:.1f}" for name in config.plotted if name in found[run])
                print(f"[{number}/{len(grid)}] {run.row}, seed {run.seed}: {shown}  ({took})", flush=True)
                grids.write_tables(config, _scores(grid, found), workdir)
        except BaseException:
            stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return _scores(grid, found)


def _finish(run: Run, execute: Callable[[list[str], Path], None]) -> tuple[dict[str, float], str]:
    """The scores of a run, and how long it took."""
    clock, scores = time.monotonic(), scores_of(run)
    if scores is not None:
        return scores, "was finished"
    for stage, flags in run.commands.items():
        if not (run.folder / stage / "result.json").exists():
            execute(flags, run.folder / f"{stage}.log")
    return scores_of(run), metrics.duration(time.monotonic() - clock)


def _scores(grid: Sequence[Run], found: Mapping[Run, Mapping[str, float]]) -> Scores:
    """Scores in the order of the rows and seeds, whichever run ended first."""
    scores: Scores = {}
    for run in grid:
        if run in found:
            scores.setdefault(run.row, {})[run.seed] = found[run]
    return scores


class Commands:
    """Runs commands of `maskvlm_jax.main`, side by side on cores of their own; a signal stops them all.

    Args:
        parallel: how many run at the same time at most.
        compiled: the folder where they keep compiled programs for each other.
    """

    def __init__(self, parallel: int, compiled: Path):
        self._environment = {"JAX_COMPILATION_CACHE_DIR": str(compiled.absolute())} | os.environ
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._shares: SimpleQueue[list[int]] = SimpleQueue()
        for part in range(parallel):
            self._shares.put(cores[part::parallel] or cores)
        self._live: set[subprocess.Popen] = set()
        self._signal = 0

    def __call__(self, flags: list[str], log: Path) -> None:
        """Runs `python -m maskvlm_jax.main` with flags, its output at the end of `log`.

        Raises:
            Stopped: a signal stopped it; its state is saved.
            UserError: it failed; the message has the last line of its log.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        share = self._shares.get()
        try:
            status = self._run([sys.executable, "-m", "maskvlm_jax.main", *flags], share, log)
        finally:
            self._shares.put(share)
        if self._signal:
            raise Stopped(self._signal, None)
        if status:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise UserError(f"a run of the grid failed, see {log}: {lines[-1]}")

    def _run(self, command: list[str], cores: list[int], log: Path) -> int:
        if self._signal:
            return 0
        with log.open("a", encoding="utf-8") as file:
            file.write(" ".join(command) + "\n")
            file.flush()
            process = subprocess.Popen(command, env=self._environment, stdout=file, stderr=subprocess.STDOUT)
            self._live.add(process)
            try:
                if cores:
                    os.sched_setaffinity(process.pid, cores)  # before it makes its threads
                if self._signal:  # it came while the process was being made
                    process.terminate()
                return process.wait()
            finally:
                self._live.discard(process)

    def stop(self) -> None:
        """Ends all commands that run; each saves its state."""
        self._signal = self._signal or signal.SIGTERM
        for process in list(self._live):
            process.terminate()

    def _hand_on(self, number: int, frame: Any) -> None:
        self._signal = number
        if number == signal.SIGTERM:  # Ctrl-C reaches them from the terminal
            self.stop()

    @contextlib.contextmanager
    def stopping(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C stop the commands; the old handlers are put back at the end."""
        old = {number: signal.signal(number, self._hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def _slug(row: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+]+", "_", row).strip("_")


def run(config: ConfigDict, workdir: Path) -> None:
    """`task = ablate`."""
    ranges.check(flatten(config.to_dict()))
    for key in ("seeds", "rows", "steps"):
        if not config[key]:
            raise UserError(f"{key} is {config[key]!r}: nothing to run; give --config.{key}")
    workdir = buckets.local_folder(str(workdir), "a grid of runs")
    folders = [run.folder for run in runs(config, workdir)]
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise UserError(f"two runs would be in {twice}; give every one of --config.seeds and --config.rows once")
    workdir.mkdir(parents=True, exist_ok=True)
    _claim(config, workdir)
    commands = Commands(config.parallel, workdir / "compiled")
    with commands.stopping():
        run_grid(config, workdir, commands, commands.stop)
    print((workdir / "table.md").read_text(encoding="utf-8"))
    print(f"tables and runs are in {workdir}")


def _claim(config: ConfigDict, workdir: Path) -> None:
    """Refuses a folder that holds another grid; more seeds and rows may join it.

    One in which no run has begun is no other grid.
    """
    path, free = workdir / "grid.json", ("seeds", "rows", "metrics", "plotted", "data_root", "name", "parallel")
    wanted = json.loads(config.to_json())
    begun = any(run_folder.holds_results(stage) for stage in workdir.glob("*/seed*/*/"))
    if path.exists() and begun:
        there = read_json(path)
        differing = sorted(key for key in wanted if key not in free and there.get(key) != wanted[key])
        if differing:
            raise UserError(
                f"{workdir} holds a grid with other values of {', '.join(differing)}; use another --workdir, or its "
                f"values to go on: {workdirs.as_flags(differing, there)}"
            )
    path.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
