"""Paths and texts as people's systems write them: brackets, the home folder, a locale without letters."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs import pretrain
from maskvlm_jax.settings.plain_values import expand_paths
from tests.conftest import ROOT, toy_flags
from tests.peoples_files import NAMES, TRAIN, pictures


def test_all_splits_of_a_root_in_brackets_are_prepared(tmp_path, cli):
    root = pictures(tmp_path / "trip [2019]", NAMES, {"train": NAMES[:8], "val": NAMES[8:]})
    flags = [f"--config.data.root={root}", f"--config.out={tmp_path / 'out'}", "--config.workers=1"]
    process = cli("--config=configs/prepare.py:data=files", *flags)
    assert process.returncode == 0, process.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train", "val"]


@pytest.mark.slow
def test_every_path_knows_the_home_folder(tmp_path, cli_environment):
    root = pictures(tmp_path / "data", NAMES)
    flags = [*toy_flags(data__root="~/data", data__captions="captions.csv"), "--workdir=~/runs/a"]
    command = [sys.executable, "-m", "maskvlm_jax.main", TRAIN, *flags]
    environment = cli_environment | {"HOME": str(tmp_path)}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "runs" / "a" / "result.json").exists() and not (ROOT / "~").exists()
    assert json.loads((tmp_path / "runs" / "a" / "config.json").read_text())["data"]["root"] == str(root)


@pytest.mark.slow
def test_a_locale_without_letters_ends_no_run(tmp_path, cli_environment):
    root = pictures(tmp_path / "data", NAMES, captions="ein schöner grüner Käfer {}")
    flags = toy_flags(data__root=str(root), data__captions="captions.csv")
    command = [sys.executable, "-m", "maskvlm_jax.main", TRAIN, *flags, f"--workdir={tmp_path / 'run'}"]
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = subprocess.run(command, cwd=ROOT, env=cli_environment | locale, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "schöner" in (tmp_path / "run" / "figures" / "masked_text_val.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("flag", ["--workdir", "--config.data.root", "--config.checkpoint", "--config.data.tokenizer"])
def test_the_home_of_nobody_is_told(flag, cli):
    process = cli(TRAIN, *toy_flags(), f"{flag}=~nobody-of-that-name/x")
    assert (process.returncode, process.stderr.count("\n")) == (2, 1), process.stderr
    assert "there is no user of that name" in process.stderr


def test_a_config_of_the_home_folder_and_a_file_that_is_no_config(cli):
    process = cli("--config=configs/common.py")
    assert (process.returncode, process.stderr.count("\n")) == (2, 1) and "has no function get_config" in process.stderr
    process = cli("--config=~/none-of-that-name.py")
    assert process.stderr.startswith(f"error: there is no config file '{Path.home()}/none-of-that-name.py'")


def test_lists_of_splits_know_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    config = pretrain.get_config("data=flickr8k")
    config.data.splits.train = "~/train.txt"
    expand_paths(config)
    assert config.data.splits.train == "/home/somebody/train.txt"
