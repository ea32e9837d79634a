"""Two hundred hostile command lines, drawn from a seed: each ends in one line that says what is wrong, or is right."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

COUNT = 200


def contents(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, cli_environment):
    folder = tmp_path_factory.mktemp("fuzz")
    command = [sys.executable, ROOT / "tests" / "fuzz.py", folder, "0", str(COUNT)]
    process = subprocess.run(command, env=cli_environment, capture_output=True, text=True, timeout=900)
    assert process.returncode == 0, process.stderr
    return folder, [json.loads(line) for line in process.stdout.splitlines()]


def test_no_command_line_ends_in_a_traceback(outcomes):
    _, lines = outcomes
    assert len(lines) == COUNT
    for line in lines:
        assert line["status"] in (0, 2) and "Traceback" not in line["errors"], line
        if line["status"]:
            assert line["errors"].count("\n") == 1 and line["errors"].startswith("error: "), line
            assert 10 < len(line["errors"]) < 1_000, line


def test_nothing_is_lost_or_overwritten(outcomes):
    folder, _ = outcomes
    assert (folder / "kept" / "config.json").read_text() == '{"format": 1'
    assert (folder / "kept" / "result.json").read_text() == "{}"
    assert (folder / "data" / "good" / "captions.csv").read_bytes() == b"image,caption\na.png,a dog\n"
    assert (folder / "data" / "a file").read_text() == "x"


def test_some_are_right(outcomes):
    _, lines = outcomes
    assert any("would" in line["out"] for line in lines)
    assert len({line["errors"] for line in lines}) > COUNT / 3  # not one refusal for all
