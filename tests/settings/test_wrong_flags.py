"""Values of flags that cannot be right are told before any work, with advice that can be followed."""

import re
import shlex
import subprocess
import sys

import pytest

from configs import common, data_sets
from maskvlm_jax.runtime.errors import UserError
from tests.conftest import ROOT, toy_flags
from tests.data.sources.tars import jpeg, write_tar
from tests.peoples_files import TRAIN


@pytest.mark.slow
def test_the_flag_that_gives_shards_of_a_split_works_as_it_is_printed(tmp_path, cli):
    for name in ("a.tar", "b.tar"):
        members = [
            (f"{i}{ending}", data) for i in range(10) for ending, data in ((".jpg", jpeg("red")), (".txt", b"a dog"))
        ]
        write_tar(tmp_path / name, *members)
    flags = toy_flags(data__root=str(tmp_path), evaluation__split="val")
    command = ["--config=configs/pretrain.py:size=tiny,data=cc3m", *flags, "--config.data.workers=0"]
    process = cli(*command, f"--workdir={tmp_path / 'run'}")
    assert process.returncode == 2 and process.stderr.count("\n") == 1
    advice = re.search(r'--config\.data\.splits="[^"]*"', process.stderr)[0]
    process = cli(*command, *shlex.split(advice.replace("PATTERN", "b.tar")), f"--workdir={tmp_path / 'run'}")
    assert process.returncode == 0, process.stderr


def test_a_set_named_twice_is_refused():
    with pytest.raises(ValueError, match="names a set twice"):
        common.parse_arg("data=files+files", data=data_sets.DATA, mixed="data")


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("evaluation.extra_splits=('nowhere',)", "'nowhere'"),
        ("evaluation.extra_splits=('',)", "''"),
        ("evaluation.best_metric=recall", "choose among auto, i2t_r1"),
    ],
)
def test_a_wrong_name_of_the_evaluation_is_told_before_the_first_step(flag, told, tmp_path, cli):
    process = cli("--config=configs/pretrain.py", *toy_flags(), f"--config.{flag}", f"--workdir={tmp_path / 'run'}")
    assert process.returncode == 2 and process.stderr.count("\n") == 1
    assert told in process.stderr and "first step" not in process.stdout
    assert not (tmp_path / "run").exists()


def test_words_are_no_numbers():
    from maskvlm_jax.settings import ranges

    with pytest.raises(UserError, match="give numbers"):
        ranges.check({"data.augment.crop_scale": ("a", "b")})


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("data={}", "data lacks augment, cache_features"),
        ("data.augment={}", "data.augment lacks crop_scale"),
        ("data.augment=3", "augment"),
        ("data.mixture={'a': 1}", "--config=FILE:data=A+B mixes two sets"),
        ("data.splits={'train': 5}", "data.splits.train is 5; give the name of a list"),
        ("data.text_buckets=(8.5,)", r"data.text_buckets is (8.5); give whole numbers"),
        ("steps=99999999999999999999", "steps is 1e+20; give at most 2147483647"),
    ],
)
def test_blocks_and_numbers_of_another_form_are_told_before_anything_is_made(flag, told, tmp_path, cli):
    process = cli(TRAIN, f"--workdir={tmp_path / 'run'}", f"--config.{flag}")
    assert (process.returncode, process.stderr.count("\n")) == (2, 1), process.stderr
    assert told in process.stderr and not (tmp_path / "run").exists()


def test_a_mistyped_flag_is_answered_without_jax(cli_environment):
    code = """if True:
        import sys
        from maskvlm_jax import main
        sys.argv = ["main.py", "--config=configs/pretrain.py", "--config.optm.lr=1"]
        status = main.main(sys.argv)
        print(status, "jax" in sys.modules)
    """
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=cli_environment, capture_output=True, text=True
    )
    assert process.stdout == "2 False\n" and "optim" in process.stderr
