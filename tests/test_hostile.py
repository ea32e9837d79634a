"""Sixty files such as the web has train through, and the report of what was wrong with them is exact."""

import json

import numpy as np
import pytest

from configs import pretrain
from maskvlm_jax.data import decoding, training_stream
from maskvlm_jax.data.ledger import Ledger
from maskvlm_jax.data.scenes.source import Scenes
from maskvlm_jax.data.sources.opening import open_source
from maskvlm_jax.runtime import metrics
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.training.progress import Progress
from maskvlm_jax.training.step_watch import StepWatch
from tests.conftest import toy_flags
from tests.data import hostile


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile")
    return path, *hostile.write(path)


def test_there_are_sixty_of_them(folder):
    path, wrong, right = folder
    assert len(wrong) + len(right) == len(list((path / "images").iterdir())) == 60


@pytest.mark.parametrize("name", hostile.odd_pictures())
def test_an_odd_picture_is_read(name):
    data = hostile.odd_pictures()[name]
    pixels = decoding.decode(data)
    assert pixels.shape[:2] == decoding.picture_size(data)


@pytest.mark.parametrize("name", hostile.broken_pictures())
def test_a_broken_picture_is_told_with_its_reason(name):
    data, reason = hostile.broken_pictures()[name]
    with pytest.raises(decoding.DecodeError) as error:
        decoding.decode(data)
    assert error.value.kind == reason


@pytest.mark.slow
def test_all_sixty_train_through_and_the_report_is_exact(folder, tmp_path, cli):
    path, wrong, _ = folder
    flags = [
        "--config=configs/pretrain.py:data=files",
        f"--workdir={tmp_path / 'run'}",
        # 64 examples are read, so each of the 60 once at least.
        *toy_flags(steps=8, eval_every=100, data__root=str(path), data__captions="captions.jsonl", data__clean="albef"),
        "--config.data.splits={}",
        "--config.data.max_broken=1.0",
    ]
    process = cli(*flags)
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    assert json.loads((tmp_path / "run" / "broken.json").read_text()) == wrong
    counts = {reason: list(wrong.values()).count(reason) for reason in wrong.values()}
    assert f"{len(wrong)} broken, replaced" in process.stdout
    for reason, count in counts.items():
        assert f"{count} {reason} (" in process.stdout

    # What the run has read is in its checkpoint: it does not go on with other data.
    (tmp_path / "run" / "result.json").unlink()
    lines = (path / "captions.jsonl").read_text().splitlines()
    (path / "captions.jsonl").write_text("\n".join(lines[1:]))
    process = cli(*flags)
    (path / "captions.jsonl").write_text("\n".join(lines))
    assert process.returncode == 2
    assert "the training data are not those that this run began with" in process.stderr


def test_training_stops_above_the_share_that_may_be_broken():
    scenes = Scenes(split="train", image_size=32, length=50)
    everything = {"rows": np.arange(50), "counted": np.ones(50, bool)}
    watch = StepWatch(scenes, 0.05, Progress(), Ledger("source", batch_size=50, **everything))
    meter = metrics.Meter(batch_size=50, steps=100)
    replaced = np.zeros(50, np.int8)
    replaced[[3, 7, 9, 20]] = training_stream.BROKEN.index("too large")  # 8 %
    with pytest.raises(
        UserError, match=r"52 of 650 examples read were broken, the last .*\(too large\); mend the data"
    ):
        for step in range(1, 30):
            watch.push(step, {"loss": 1.0}, {"index": np.arange(50), "replaced": replaced}, meter)
    assert watch.remember().broken == {scenes.id(i): "too large" for i in (3, 7, 9, 20)}


def test_the_captions_are_those_of_the_file(folder):
    path = folder[0]
    data = pretrain.get_config("data=files").data.to_dict()
    data |= {"root": str(path), "captions": "captions.jsonl", "splits": {}, "clean": "albef"}
    source = open_source(data, "train", 32)
    assert [source.id(i) for i in range(60) if not source.captions(i)] == ["dots.jpg"]
