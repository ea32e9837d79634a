"""Batches and splits without negatives are told once, and only those."""

import json

import numpy as np
import pytest

from maskvlm_jax.training.progress import Progress
from maskvlm_jax.training.step_watch import StepWatch
from tests.conftest import toy_flags
from tests.peoples_files import NAMES, TRAIN, pictures


def test_one_negative_in_a_batch_is_enough(capsys):
    watch = StepWatch(None, 0.05, Progress(), None, reads_negatives=True)
    ids = np.stack([np.zeros(100, np.int32), np.arange(100, dtype=np.int32)], axis=1)
    watch.push(1, {}, {"pair_id": ids + np.eye(100, 1, k=-99, dtype=np.int32)}, None)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.slow
def test_one_picture_has_no_wrong_one_beside_it_and_equal_captions_are_no_negatives(tmp_path, cli):
    root = pictures(tmp_path / "data", NAMES, {"train": NAMES[:8], "val": NAMES[8:9]}, captions="a dog")
    flags = toy_flags(data__root=str(root), data__captions="captions.csv")
    process = cli(TRAIN, *flags, f"--workdir={tmp_path / 'run'}")
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("warning: step 1 has no negatives") == process.stdout.count("no negatives") == 1
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert "masked_text_loss_matched" in metrics
    assert not [name for name in metrics if "shuffled" in name or "gain" in name]
