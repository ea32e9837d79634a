"""A run that was stopped at any moment and started again is the run that was never stopped."""

import random
import shutil
import signal
import time

import pytest

from maskvlm_jax.settings import plain_values
from tests.conftest import TOY, toy_config, toy_flags
from tests.training.resuming import PRETRAIN, finish, is_the_same_when_killed, result, same_as_straight, start, wait_for


@pytest.mark.parametrize("seed", [0])
def test_killed_twice_at_random_moments_and_resumed_equals_the_straight_run(
    finished_run, cli_environment, tmp_path, seed
):
    workdir, rng = tmp_path / "killed", random.Random(seed)
    for _ in range(2):
        process = start(workdir, cli_environment)
        wait_for(process, "step ")
        time.sleep(rng.uniform(0.0, 0.3))
        process.kill()
        assert finish(process) == -signal.SIGKILL
    assert finish(start(workdir, cli_environment)) == 0
    same_as_straight(workdir, finished_run[0])


# What each adds to the state: routers, masks from a teacher, centres, a decoder, pictures alone.
@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["eve", "syncmask", "semmim", "m3ae_med", "fastmim"])
def test_any_recipe_that_is_killed_goes_on_to_the_same_result(cli_environment, tmp_path, recipe):
    config = plain_values.flatten(toy_config(f"recipe={recipe}").to_dict())
    toy = [f"--config.{name}={config[name]}" for name in TOY if name in config]
    flags = (f"{PRETRAIN}:recipe={recipe}", *toy, "--config.masking.image_cell=1")
    is_the_same_when_killed(tmp_path, cli_environment, flags, "step 3/")


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(finished_run, cli_environment, tmp_path, number):
    workdir = tmp_path / "stopped"
    process = start(workdir, cli_environment)
    wait_for(process, "first step")
    process.send_signal(number)
    told, _ = process.communicate(timeout=600)
    assert process.returncode == 128 + number, told
    assert "is saved; the same command goes on" in told
    assert finish(start(workdir, cli_environment)) == 0
    same_as_straight(workdir, finished_run[0])


def test_a_half_written_checkpoint_is_not_taken_for_a_whole_one(finished_run, cli, copy_of_run):
    newest = copy_of_run / "checkpoints" / "6"
    newest.rename(copy_of_run / "checkpoints" / "6.orbax-checkpoint-tmp")
    (copy_of_run / "result.json").unlink()
    process = cli(PRETRAIN, f"--workdir={copy_of_run}", *toy_flags())
    assert process.returncode == 0, process.stderr
    same_as_straight(copy_of_run, finished_run[0])


@pytest.mark.slow
def test_an_evaluation_that_a_kill_cut_off_is_made_again_and_told_once(finished_run, cli_environment, copy_of_run):
    for folder in ("checkpoints/4", "checkpoints/6", "best"):  # killed between the checkpoint of step 3 and its scores
        shutil.rmtree(copy_of_run / folder)
    (copy_of_run / "result.json").unlink()
    process = start(copy_of_run, cli_environment)
    wait_for(process, "final evaluation")
    process.kill()
    finish(process)
    assert finish(start(copy_of_run, cli_environment)) == 0
    same_as_straight(copy_of_run, finished_run[0])
    best = [sorted(path.name for path in (run / "best").iterdir()) for run in (copy_of_run, finished_run[0])]
    assert best[0] == best[1]


def damage(folder) -> None:
    """Cuts every data file of a checkpoint item in half."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1000]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_checkpoint_is_told_moved_aside_and_the_one_before_goes_on(finished_run, cli, copy_of_run):
    damage(copy_of_run / "checkpoints" / "6" / "params")
    (copy_of_run / "result.json").unlink()
    process = cli(PRETRAIN, f"--workdir={copy_of_run}", *toy_flags())
    assert process.returncode == 0, process.stderr
    assert "checkpoints/6 is damaged" in process.stdout and "moved to 6.damaged" in process.stdout
    assert (copy_of_run / "checkpoints" / "6.damaged").is_dir()
    same_as_straight(copy_of_run, finished_run[0])


def test_without_a_whole_checkpoint_nothing_is_overwritten_and_the_run_says_so(cli, copy_of_run):
    for step in (copy_of_run / "checkpoints").iterdir():
        damage(step / "params")
    (copy_of_run / "result.json").unlink()
    process = cli(PRETRAIN, f"--workdir={copy_of_run}", *toy_flags())
    assert process.returncode == 2
    assert "no checkpoint in" in process.stderr and process.stderr.count("\n") == 1
    assert {path.name for path in (copy_of_run / "checkpoints").iterdir()} == {"3.damaged", "4.damaged", "6.damaged"}
    assert not (copy_of_run / "result.json").exists()


def test_evaluating_a_damaged_checkpoint_is_one_clear_line(cli, copy_of_run):
    damage(copy_of_run / "checkpoints" / "6" / "params")
    process = cli("--config=configs/evaluate.py", f"--config.checkpoint={copy_of_run}")
    assert process.returncode == 2
    assert "checkpoints/6 cannot be read" in process.stderr and process.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_run_may_start_from_another_run_s_parameters(finished_run, cli, tmp_path):
    straight = tmp_path / "other"
    shutil.copytree(finished_run[0], straight)
    workdir = tmp_path / "second"
    process = cli(PRETRAIN, f"--workdir={workdir}", f"--config.checkpoint={straight}", *toy_flags(steps=3))
    assert process.returncode == 0, process.stderr
    assert result(workdir)["protocol"]["initialised_from"] == f"{straight} latest"
