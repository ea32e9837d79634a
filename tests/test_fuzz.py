"""Two hundred hostile command lines, drawn from a seed: each ends in one line that says what is wrong, or is right."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

COUNT = 200


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, cli_environment):
    folder = tmp_path_factory.mktemp("fuzz")
    command = [sys.executable, ROOT / "tests" / "fuzz.py", folder, "0", str(COUNT)]
    process = subprocess.run(command, env=cli_environment, capture_output=True, text=True, timeout=900)
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


def test_no_command_line_ends_in_a_traceback(outcomes):
    assert len(outcomes) == COUNT
    for line in outcomes:
        assert line["status"] in (0, 2) and "Traceback" not in line["errors"], line
        if line["status"]:
            assert line["errors"].count("\n") == 1 and line["errors"].startswith("error: "), line
            assert 10 < len(line["errors"]) < 1_000, line


def test_nothing_is_lost_or_overwritten(outcomes):
    for line in outcomes:
        assert line["changed"] == [], line


def test_some_are_right(outcomes):
    assert any("would" in line["out"] for line in outcomes)
    assert len({line["errors"] for line in outcomes}) > COUNT / 3  # not one refusal for all
