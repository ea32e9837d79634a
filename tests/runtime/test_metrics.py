"""What a run that was killed wrote too early is taken out when it goes on."""

import json

import numpy as np
import pytest

from maskvlm_jax.runtime.metrics import MetricWriter

LINES = [
    (2, "train", {"loss": 3.0}),
    (2, "val", {"recall": 1.0}),
    (4, "train", {"loss": 2.0}),
    (4, "val", {"recall": 2.0}),
]


@pytest.fixture
def workdir(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    for line in LINES:
        writer.write(*line)
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "spl')  # cut off by a kill
    return tmp_path


def kept(workdir, start: int, **options) -> list[tuple[int, str]]:
    MetricWriter(workdir, start, **options).close()
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["split"]) for line in lines]


def test_lines_behind_the_step_that_a_run_goes_on_from_are_taken_out(workdir):
    assert kept(workdir, 4) == [(2, "train"), (2, "val"), (4, "train"), (4, "val")]
    assert kept(workdir, 3) == [(2, "train"), (2, "val")]


def test_evaluations_that_are_made_again_are_taken_out_too(workdir):
    assert kept(workdir, 4, evaluate_again=True) == [(2, "train"), (2, "val"), (4, "train")]


def test_figures_reach_the_events(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    writer.figure(1, "reconstruction", np.zeros((4, 4, 3), np.uint8))
    writer.close()
    assert any(b"reconstruction" in path.read_bytes() for path in (tmp_path / "events").iterdir())
