"""`launch/slurm.sbatch` against stand-ins for Slurm."""

import os
import re
import shutil
import signal
import subprocess

import pytest

from tests.launch.world import FLAGS, LAUNCH, one_error, until

SLURM = {"SLURM_JOB_ID": "7", "SLURM_GPUS_PER_NODE": "h100:8", "SLURM_NTASKS_PER_NODE": "8", "SLURM_CPUS_PER_TASK": "6"}


def slurm(world, *flags: str, **env: str) -> subprocess.Popen:
    """The batch script as slurmd starts it: a copy elsewhere, in a folder of Slurm's own."""
    copy = world.folder / "slurm_script"
    shutil.copy(LAUNCH / "slurm.sbatch", copy)
    return world.start("bash", str(copy), *flags, **(SLURM | {"SLURM_SUBMIT_DIR": str(world.repository)} | env))


def ended(process: subprocess.Popen) -> subprocess.CompletedProcess:
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def requeued(world) -> bool:
    return ["requeue", "7"] in [call["args"] for call in world.calls("scontrol")]


def test_slurm_runs_the_one_line_in_every_task(world):
    flags = [*FLAGS, "--config.name=a 'b' $c"]
    process = ended(slurm(world, *flags, PYTHON="python3"))
    assert process.returncode == 0, process.stderr
    srun = ["--cpus-per-task=6", "--kill-on-bad-exit=0", "--wait=300", "python3", "-m", "maskvlm_jax.main"]
    assert [call["args"] for call in world.calls()] == [[*srun, "--coordinator=auto", *flags]]
    assert world.calls()[0]["cache"] == str(world.repository / "runs/compiled")


def test_slurm_saves_before_the_time_is_up_and_goes_back_into_the_queue(world):
    world.set(plan=["wait"])
    process = slurm(world, *FLAGS, PYTHON="python3")
    until(lambda: world.calls("srun"))
    os.kill(process.pid, signal.SIGUSR1)
    assert ended(process).returncode == 0
    calls = [(call["tool"], call["args"][-2:]) for call in world.calls("scancel", "scontrol")]
    assert calls == [("scancel", ["--signal=TERM", "7"]), ("scontrol", ["requeue", "7"])]
    assert not [call for call in world.calls("srun") if "got" in call]  # srun would have killed its tasks


@pytest.mark.parametrize("when, back", [("2026-11-22T12:00:00", True), ("None", False)])
def test_slurm_requeues_what_was_preempted_not_what_somebody_stopped(world, when, back):
    world.set(plan=["exit 143"], preempted=when)
    assert ended(slurm(world, *FLAGS, PYTHON="python3")).returncode == (0 if back else 143)
    assert requeued(world) == back
    assert len(world.calls("srun")) == 1


def test_slurm_outlives_the_signal_that_its_tasks_get_as_well(world):
    world.set(plan=["wait"])
    process = slurm(world, *FLAGS, PYTHON="python3")
    until(lambda: world.calls("srun"))
    os.kill(process.pid, signal.SIGTERM)
    (world.folder / "signalled").touch()
    assert ended(process).returncode == 143
    assert len(world.calls("srun")) == 1 and not requeued(world)


@pytest.mark.parametrize(
    "plan, status, starts", [(["exit 134", "exit 1", "exit 0"], 0, 3), (["exit 1"] * 3, 1, 3), (["exit 2"], 2, 1)]
)
def test_slurm_tries_a_crash_again_but_not_a_user_s_error(world, plan, status, starts):
    world.set(plan=plan)
    assert ended(slurm(world, *FLAGS, PYTHON="python3", RETRIES="2")).returncode == status
    assert len(world.calls("srun")) == starts and not requeued(world)


@pytest.mark.parametrize(
    "flags, env, told",
    [
        ([], {}, "flags are missing"),
        (FLAGS, {"PYTHON": ".venv/bin/python"}, "there is no .venv/bin/python"),
        (FLAGS, {"SLURM_SUBMIT_DIR": "/"}, "repository's root"),
        (FLAGS, {"SLURM_NTASKS_PER_NODE": "1"}, "one task a GPU"),
    ],
)
def test_slurm_says_what_is_wrong_and_starts_nothing(world, flags, env, told):
    assert told in one_error(ended(slurm(world, *flags, **({"PYTHON": "python3"} | env))))
    assert not world.calls()


def test_slurm_asks_for_a_task_a_gpu_and_a_warning():
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    options = dict(line[len("#SBATCH --") :].partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert re.fullmatch(r"B:USR1@\d+", options["signal"])
    assert {"requeue", "exclusive"} <= options.keys() and options["open-mode"] == "append"
    code = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not [line for line in lines[code:] if line.startswith("#SBATCH")]  # Slurm would not read them
