"""A workdir belongs to one run: what is refused, what is locked, and what may be claimed anew."""

import json
import signal
import subprocess
import sys

import pytest

from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import run_folder
from maskvlm_jax.settings import workdir as workdirs
from maskvlm_jax.training import checkpoint
from tests.conftest import ROOT, toy_config, toy_flags


@pytest.mark.parametrize("name", ["run [1]", "a]b", "back\\slash"])
def test_a_workdir_whose_checkpoints_could_not_be_found_is_refused_before_anything_is_made(name, tmp_path, cli):
    with pytest.raises(UserError, match="no checkpoint can be found in a folder with"):
        workdirs.check_path(tmp_path / name / "inner")
    process = cli("--config=configs/pretrain.py", *toy_flags(), f"--workdir={tmp_path / name}")
    assert process.returncode == 2 and process.stderr.count("\n") == 1
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["what?", "star*", "a {b,c}", "ünï", "with space"])
def test_in_any_other_folder_what_was_saved_is_found(name, tmp_path):
    workdirs.check_path(tmp_path / name)
    saved = checkpoint.Checkpoints(tmp_path / name)
    saved._checkpointer.save_checkpointables(3, {"progress": {"a": 1}})
    assert saved.steps == [3] and checkpoint.Checkpoints(tmp_path / name, writable=False).steps == [3]


def test_a_second_run_is_refused_in_one_line_and_the_lock_dies_with_its_process(tmp_path, cli):
    command = [sys.executable, "-m", "tests.settings.lock_holder", tmp_path]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "locked\n"
        before = sorted(path.name for path in tmp_path.iterdir())
        process = cli("--config=configs/pretrain.py", *toy_flags(), f"--workdir={tmp_path}")
        assert process.returncode == 2 and process.stderr.count("\n") == 1
        assert f"process {first.pid}" in process.stderr and "--workdir" in process.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        first.send_signal(signal.SIGKILL)
    with workdirs.locked(tmp_path):
        pass


def test_a_workdir_in_which_nothing_was_saved_takes_a_new_config(tmp_path):
    workdir, config = tmp_path / "run", toy_config()
    workdirs.claim(workdir, config, alone=True)
    (workdir / "tokenizer").mkdir()
    (workdir / "initial_weights.json").write_text("{}")  # of encoders that the new run may not start from
    (workdir / "grouping.json").write_text("{}")
    (workdir / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir(parents=True)  # a save that was cut off
    assert run_folder.of_a_run(workdir) is None
    config.optim.lr = 1e-5
    with pytest.raises(UserError, match="belongs to a run"):  # where another may be, which has not saved yet
        workdirs.claim(workdir, config, alone=False)
    workdirs.claim(workdir, config, alone=True)
    assert workdirs.upgrade.read(workdir / "config.json")["optim"]["lr"] == 1e-5
    assert {path.name for path in workdir.iterdir()} == {"config.json", "checkpoints"}
    (workdir / "tokenizer").mkdir()
    config.data.root = "elsewhere"  # a free key, but other captions
    workdirs.claim(workdir, config, alone=True)
    assert not (workdir / "tokenizer").exists()
    (workdir / "tokenizer").mkdir()
    config.data.root = "a third"
    with pytest.raises(UserError, match=r"other values of data\.root"):  # what is there would be taken for its own
        workdirs.claim(workdir, config, alone=False)
    (workdir / "checkpoints" / "20.damaged").mkdir(parents=True)  # something was trained here
    config.optim.lr = 1e-4
    with pytest.raises(UserError, match="belongs to a run with other values of optim"):
        workdirs.claim(workdir, config, alone=True)


def test_a_tokenizer_of_the_user_s_stays_in_the_workdir(tmp_path):
    folder = tmp_path / "tokenizer"
    config = toy_config(data__tokenizer=str(folder))
    workdirs.claim(tmp_path, config, alone=True)
    folder.mkdir()
    workdirs.claim(tmp_path, config, alone=True)
    assert folder.is_dir()


def test_a_link_is_removed_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / "there").mkdir()
    workdirs.claim(tmp_path / "run", toy_config(), alone=True)
    (tmp_path / "run" / "tokenizer").symlink_to(tmp_path / "there")
    workdirs.claim(tmp_path / "run", toy_config(), alone=True)
    assert not (tmp_path / "run" / "tokenizer").is_symlink() and (tmp_path / "there").is_dir()


def test_the_folder_of_an_evaluation_or_of_others_is_no_workdir(tmp_path):
    for name in ("scored/result.json", "saved/checkpoints/1000", "encoder/config.json"):
        (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / "scored" / "result.json").write_text("{}")
    (tmp_path / "saved" / "checkpoints" / "1000").mkdir()
    (tmp_path / "encoder" / "config.json").write_text('{"model_type": "bert"}')
    for name, says in (("scored", "no config.json"), ("saved", "no config.json"), ("encoder", "not the config")):
        assert run_folder.of_a_run(tmp_path / name) is None
        with pytest.raises(UserError, match=says):
            workdirs.claim(tmp_path / name, toy_config(), alone=True)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--config.data.tokenizer=bert-base-uncased"], "tokenizer folder bert-base-uncased"),
        (["--config.init.image=nowhere"], "nowhere"),
        (["--config.data.grouping.checkpoint=nowhere", "--config.data.grouping.part=64"], "nowhere"),
    ],
)
def test_a_refused_command_leaves_a_workdir_in_which_nothing_was_saved_as_it_was(tmp_path, cli, flags, says):
    workdirs.claim(tmp_path / "run", toy_config(), alone=True)
    of_encoders = {"image": {"values": {}}, "text": {"values": {}}}  # which no run has started from
    for name in ("tokenizer/tokenizer.json", "initial_weights.json", "grouping.json"):
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text(json.dumps(of_encoders))

    def contents():
        files = (path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock")
        return {path: path.read_bytes() for path in files}

    before = contents()
    config = "--config=configs/pretrain.py:recipe=syncmask"
    process = cli(config, *toy_flags(), *flags, f"--workdir={tmp_path / 'run'}")
    assert process.returncode == 2 and process.stderr.count("\n") == 1 and says in process.stderr
    assert contents() == before


def test_a_run_is_no_place_for_the_result_of_an_evaluation(finished_run, cli):
    before = (finished_run[0] / "result.json").read_bytes()
    process = cli("--config=configs/evaluate.py", f"--config.checkpoint={finished_run[0]}", "-w", finished_run[0])
    assert process.returncode == 2 and "is the workdir of a run" in process.stderr
    assert (finished_run[0] / "result.json").read_bytes() == before


def test_the_flag_of_an_empty_block_is_the_blocks():
    there = {"data": {"splits": {}, "root": "x"}}
    keys = workdirs.differing_keys(there, {"data": {"splits": {"train": "a", "val": "b"}, "root": "x"}})
    assert workdirs.as_flags(keys, there) == "'--config.data.splits={}'"
