"""A new kind of source is one new file and one line of config."""

import json
import sys

import numpy as np
import pytest

from configs import prepare as prepare_config
from configs import pretrain
from maskvlm_jax.data import training_stream
from maskvlm_jax.data.sources import opening
from maskvlm_jax.data.sources.opening import open_source
from maskvlm_jax.data.sources.training_set import Limited
from maskvlm_jax.prepare import preparation
from maskvlm_jax.runtime.errors import UserError
from tests.data.hostile import encoded, picture
from tests.data.streaming import make_example, make_tokenizer

# The worked example: pictures named by the lines of ROOT/SPLIT.jsonl, {"file": ..., "says": ...}.
MY_SOURCE = """
import json
from pathlib import Path

from maskvlm_jax.data.sources.base import Listed


class Lines(Listed):
    def __init__(self, root, lines):
        super().__init__(ids=[line["file"] for line in lines], captions=[[line["says"]] for line in lines])
        self.root = root

    def image(self, index):
        return (self.root / self.id(index)).read_bytes()


def open_split(data, split, *, image_size):
    root = Path(data["root"])
    return Lines(root, [json.loads(line) for line in (root / f"{split}.jsonl").read_text().splitlines()])
"""


@pytest.fixture(autouse=True)
def own_path(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "lines_source", raising=False)


@pytest.fixture
def data(tmp_path) -> dict:
    """`config.data` as it is, but for the kind of source and where the set lies."""
    (tmp_path / "lines_source.py").write_text(MY_SOURCE)
    lines = [{"file": f"{number}.jpg", "says": f"a dog, number {number}"} for number in range(10)]
    for number, line in enumerate(lines):
        (tmp_path / line["file"]).write_bytes(encoded(picture(number), "JPEG"))
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = pretrain.get_config().data
    config.source, config.root = str(tmp_path / "lines_source.py"), str(tmp_path)
    return config.to_dict()


def batches_of(source, **options) -> list[dict[str, np.ndarray]]:
    options = {"batch_size": 5, "seed": 3, "start": 0, "stop": 3, "threads": 1} | options
    return list(training_stream.train_stream(Limited(source), make_example(source, make_tokenizer(source)), **options))


def test_a_source_in_a_file_of_ones_own_is_trained_on_also_by_worker_processes(data):
    source = open_source(data, "train", 32)
    batches = batches_of(source, workers=0)
    assert sorted(np.concatenate([batch["index"] for batch in batches[:2]])) == list(range(10))
    assert source[3]["captions"] == source.captions(3) == ["a dog, number 3"] and source.id(3) == "3.jpg"
    for one, other in zip(batches, batches_of(source, workers=2), strict=True):
        for key, value in one.items():
            np.testing.assert_array_equal(other[key], value, err_msg=key)


def test_its_fingerprint_tells_other_captions(data, tmp_path):
    before = open_source(data, "train", 32).fingerprint
    lines = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(lines.replace("number 7", "number seven"))
    assert open_source(data, "train", 32).fingerprint != before == before.lower()


def test_it_is_prepared_as_any_other(data, tmp_path):
    config = prepare_config.get_config()
    with config.unlocked():
        config.data.update(data)
    assert opening.existing_splits(config.data) == ("train",)
    config.update(out=str(tmp_path / "out"), workers=2, examples_per_shard=4, min_size=1)
    preparation.run(config, tmp_path)
    prepared = open_source({**data, "source": "array_record", "root": str(tmp_path / "out")}, "train", 32)
    assert [prepared[i] for i in range(10)] == [open_source(data, "train", 32)[i] for i in range(10)]


def test_a_file_without_a_source_is_told(data, tmp_path):
    (tmp_path / "no_source.py").write_text("")
    with pytest.raises(UserError, match=r"no_source\.py is no data source: it has no open_split"):
        open_source({**data, "source": str(tmp_path / "no_source.py")}, "train", 32)
