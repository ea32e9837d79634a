"""Several processes train as one: the same stream, the same losses, the same stop; faults lose nothing."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from maskvlm_jax.runtime import sharding
from tests.conftest import ROOT, toy_flags

CONFIG = "--config=configs/pretrain.py"


@pytest.fixture
def pod(cli_environment, tmp_path):
    """Runs `launch/simulate_pod.sh`; returns the finished process."""

    def run(count: int, *flags: str, workdir: Path = tmp_path / "pod", devices: int = 1, **settings: str):
        environment = cli_environment | {"DEVICES": str(devices), "GRACE": "3"} | settings
        environment["PYTHON"] = sys.executable
        command = ["launch/simulate_pod.sh", str(count), CONFIG, f"--workdir={workdir}", *(flags or toy_flags())]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)

    return run


def result(workdir: Path) -> dict:
    return json.loads((workdir / "result.json").read_text())


def losses(workdir: Path) -> dict[int, list[float]]:
    """Every loss of every logged step."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["split"] == "train"]
    return {line["step"]: [line[name] for name in sorted(line) if name.endswith("loss")] for line in lines}


def same_run(workdir: Path, straight: Path) -> None:
    """The same examples, and losses that differ by the order of sums alone."""
    assert result(workdir)["protocol"]["stream"] == result(straight)["protocol"]["stream"]
    ours, theirs = losses(workdir), losses(straight)
    assert ours.keys() <= theirs.keys() and len(ours) >= len(theirs) - 1  # a resumed run's first step is not logged
    np.testing.assert_allclose([ours[step] for step in ours], [theirs[step] for step in ours], rtol=1e-5)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_one_step_and_one_process_goes_on(pod, cli, finished_run, tmp_path):
    stopped = pod(2, FAULT="term:1@3")
    assert stopped.returncode == 143, stopped.stdout + stopped.stderr
    assert "is saved; the same command goes on" in stopped.stdout
    workdir = tmp_path / "pod"
    assert not (workdir / "result.json").exists()
    process = cli(CONFIG, f"--workdir={workdir}", *toy_flags())
    assert process.returncode == 0, process.stderr
    same_run(workdir, finished_run[0])


@pytest.mark.slow
@pytest.mark.parametrize(("count", "devices"), [(2, 4), (4, 1)])
def test_processes_together_train_as_one(pod, cli, tmp_path, count, devices):
    # Centres start from means over the batches of all processes.
    flags = toy_flags(steps=20, eval_every=10, checkpoint_every=10, model__pooling__centred=True)
    straight, workdir = tmp_path / "straight", tmp_path / "pod"
    process = cli(CONFIG, f"--workdir={straight}", *flags)
    assert process.returncode == 0, process.stderr
    process = pod(count, *flags, devices=devices)
    assert process.returncode == 0, process.stdout + process.stderr
    same_run(workdir, straight)
    assert losses(workdir).keys() == set(range(2, 21))  # the first step is the compiler's
    np.testing.assert_allclose(
        [result(workdir)["metrics"][name] for name in ("masked_image_loss_matched", "mean_recall")],
        [result(straight)["metrics"][name] for name in ("masked_image_loss_matched", "mean_recall")],
        rtol=1e-3,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "status", "told"),
    [
        ("kill:1@4", 137, ["error: process 1 on HOST was lost", ""]),
        ("kill:0@4", 137, ["", "error: process 0 on HOST was lost"]),
        ("slow:1@3", 0, ["", ""]),
        ("torn", 0, ["", ""]),
        ("disk:1", 2, ["error: process 1 on HOST ended: FOLDER cannot be written", "error: FOLDER cannot be written"]),
        ("disk:0", 2, ["error: FOLDER cannot be written", "error: process 0 on HOST ended: FOLDER cannot be written"]),
    ],
)
def test_after_a_fault_the_same_command_goes_on_and_no_example_is_lost(
    pod, finished_run, tmp_path, fault, status, told
):
    workdir = tmp_path / "pod"
    if fault == "torn":
        assert pod(2, FAULT="kill:1@5").returncode == 137
    faulty = pod(2, FAULT=fault, STILL="5")
    assert faulty.returncode == status, faulty.stdout + faulty.stderr
    for process, beginning in enumerate(told):
        log = (workdir / "processes" / f"{process}.log").read_text()
        assert "Traceback" not in log
        lines = [line for line in log.splitlines() if line.startswith("error")]
        assert len(lines) == bool(beginning), log
        pattern = re.escape(beginning).replace("HOST", r"\S+").replace("FOLDER", r"\S+/checkpoints/2")
        assert not beginning or re.match(pattern, lines[0])
    if fault == "torn":
        assert "is damaged" in faulty.stdout and "moved to" in faulty.stdout
    if fault.startswith("disk"):
        assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["2.orbax-checkpoint-tmp"]
    if status:
        assert pod(2).returncode == 0
    same_run(workdir, finished_run[0])


@pytest.fixture
def watchers():
    """Three processes that watch each other and do, or say at their end, what is written to them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-m", "tests.runtime.watcher", address]
    running = [subprocess.Popen([*command, str(number)], cwd=ROOT, **pipes) for number in range(3)]
    for process in running:
        assert process.stdout.readline() == "up\n"
    yield running
    for process in running:
        process.kill()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_is_named_by_the_others_which_end(watchers, victim):
    watchers[victim].kill()
    for number, process in enumerate(watchers):
        if number != victim:
            told = process.stderr.readline() + process.stderr.read()
            assert re.fullmatch(
                rf"error: process {victim} on \S+ was lost, .* goes on from the last checkpoint\n", told
            )
            assert process.wait(10) == 75


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_fails_ends_the_others_with_its_words_and_status(watchers, victim):
    watchers[1 - victim].stdin.close()  # they work on
    watchers[victim].stdin.write("the disk is full\n")
    watchers[victim].stdin.close()
    for number, process in enumerate(watchers):
        told = "" if number == victim else rf"error: process {victim} on \S+ ended: the disk is full\n"
        assert re.fullmatch(told, process.stderr.read())
        assert process.wait(10) == 2


def test_a_process_that_has_finished_hears_of_one_that_then_fails(watchers):
    for number, word in ((1, "finish"), (0, "finish"), (2, "too late")):
        watchers[number].stdin.write(word + "\n")
        watchers[number].stdin.flush()
    assert [process.wait(10) for process in watchers] == [2, 2, 2]
    assert "process 2 on" in watchers[1].stderr.read()


def start(*flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "maskvlm_jax.main", CONFIG, "--workdir=unused", *flags]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def test_processes_that_do_not_come_are_named_by_all_that_did(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = [f"--coordinator=127.0.0.1:{port}", "--processes=4", "--connect_timeout=8"]
    running = [start(*flags, f"--process={number}") for number in (0, 2)]
    for process in running:
        told = process.communicate(timeout=60)[1]
        assert process.returncode == 75  # it may work later
        assert told == "error: process 1, 3 did not join within 8 s; look at its host, or raise --connect_timeout\n"


def test_without_process_zero_its_address_is_named():
    process = start("--coordinator=127.0.0.1:9", "--processes=2", "--process=1", "--connect_timeout=1")
    told = process.communicate(timeout=60)[1]
    assert (process.returncode, told.count("\n")) == (75, 1)
    assert "process 0 at 127.0.0.1:9 did not join within 1 s" in told


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--coordinator=host:1"], "needs --processes=N and --process=I"),
        (["--coordinator=host:1", "--processes=2", "--process=2"], "needs --processes=N and --process=I"),
        (["--coordinator=auto"], "--coordinator=auto finds no cluster here"),
    ],
)
def test_a_wrong_way_to_join_is_told_in_one_line(flags, told):
    process = start(*flags)
    error = process.communicate(timeout=60)[1]
    assert (process.returncode, error.count("\n")) == (2, 1) and told in error


@pytest.mark.parametrize("fault", ["kill:2@3", "kill:1", "burn:0@1", "disk:x"])
def test_a_fault_that_cannot_be_made_is_refused_before_anything_starts(pod, tmp_path, fault):
    process = pod(2, FAULT=fault)
    assert process.returncode == 2 and f"FAULT={fault}" in process.stderr
    assert not (tmp_path / "pod").exists()


@pytest.mark.parametrize(
    ("held", "rows", "counted"),
    [
        ([(0, (0, 4)), (1, (4, 8))], [0, 1, 2, 3], [True] * 4),  # each process a part
        ([(1, (0, 4)), (0, (4, 8))], [4, 5, 6, 7], [True] * 4),  # in another order
        ([(0, (0, 2)), (1, (2, 4)), (0, (4, 6)), (1, (6, 8))], [0, 1, 4, 5], [True] * 4),  # by turns
        ([(1, (0, 8)), (0, (0, 8))], list(range(8)), [True] * 8),  # along the model axis: the same rows
    ],
)
def test_a_process_reads_the_rows_that_its_devices_hold(monkeypatch, held, rows, counted):
    class Device:
        def __init__(self, process_index: int):
            self.process_index = process_index

    class Sharding:
        def devices_indices_map(self, shape):
            return {Device(process): (slice(*part),) for process, part in held}

    monkeypatch.setattr(sharding, "batch_sharding", lambda mesh: Sharding())
    assert [x.tolist() for x in sharding.rows_of_process(None, 8)] == [rows, counted]
