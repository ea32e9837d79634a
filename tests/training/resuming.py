"""Runs that are started, killed and compared with one that was not."""

import json
import signal
import subprocess
import sys

from tests.conftest import ROOT, toy_flags

PRETRAIN = "--config=configs/pretrain.py"


def result(workdir) -> dict:
    return json.loads((workdir / "result.json").read_text())


def start(workdir, environment, *flags) -> subprocess.Popen:
    flags = flags or (PRETRAIN, *toy_flags())
    command = [sys.executable, "-m", "maskvlm_jax.main", f"--workdir={workdir}", *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def wait_for(process: subprocess.Popen, beginning: str) -> None:
    """Reads what the process prints until a line begins so."""
    for line in process.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(f"the run ended without {beginning!r}")


def finish(process: subprocess.Popen) -> int:
    process.communicate(timeout=600)
    return process.returncode


def is_the_same_when_killed(folder, environment, flags, at: str) -> None:
    """A run that is killed where a line begins with `at`, and started again, against one in folder/straight that is
    not."""
    assert finish(start(folder / "straight", environment, *flags)) == 0
    process = start(folder / "killed", environment, *flags)
    wait_for(process, at)
    process.kill()
    assert finish(process) == -signal.SIGKILL
    assert finish(start(folder / "killed", environment, *flags)) == 0
    same_as_straight(folder / "killed", folder / "straight")


def same_as_straight(workdir, straight) -> None:
    ours, theirs = result(workdir), result(straight)
    assert ours["protocol"]["parameters_sha256"] == theirs["protocol"]["parameters_sha256"]
    assert ours["protocol"]["stream"] == theirs["protocol"]["stream"]
    assert ours["metrics"] == theirs["metrics"]
    steps = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    train = [line["step"] for line in steps if line["split"] == "train"]
    assert train == sorted(set(train)), "a step was logged twice"
    assert evaluations(workdir) == evaluations(straight)


def evaluations(workdir) -> list[dict]:
    """The lines of metrics.jsonl that are no training step's."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] != "train"]
