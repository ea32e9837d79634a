"""How many of the examples that are scored were trained on."""

import json

import pytest

from configs import data_sets
from maskvlm_jax.data.sources import opening
from maskvlm_jax.data.sources.files import Files
from maskvlm_jax.data.sources.training_set import Limited
from tests.conftest import toy_flags
from tests.peoples_files import NAMES, TRAIN, pictures


def test_examples_that_are_trained_on_and_scored_are_counted(tmp_path):
    root = pictures(tmp_path / "data", NAMES, {"train": NAMES[:8], "val": NAMES[6:], "test": NAMES[8:]})
    lists = {split: f"{split}.txt" for split in ("train", "val", "test")}
    train, val, test = (
        Files(root=str(root), images="images", captions="captions.csv", split=split, splits=lists) for split in lists
    )
    scored = {"train": (train, 0), "val": (val, 0), "first": (val, 1), "test": (test, 0)}
    assert opening.count_trained_on(Limited(train), scored) == {"train": 8, "val": 2, "first": 1, "test": 0}
    assert opening.count_trained_on(Limited(train, 7), {"train": (train, 3), "val": (val, 0)}) == {"train": 3, "val": 1}


def test_of_a_mixture_the_scored_set_is_looked_at(tmp_path):
    lists = {"train": NAMES[:8], "val": NAMES[6:]}
    roots = {name: pictures(tmp_path / name, NAMES, lists) for name in ("files", "flickr8k")}
    data = data_sets.data_block("files+flickr8k").to_dict()
    for name, root in roots.items():
        data["mixture"][name] |= {"root": str(root), "images": "images", "captions": "captions.csv"}
        data["mixture"][name]["splits"] = {split: f"{split}.txt" for split in lists}
    trained, scored = opening.open_training_source(data, 32), opening.open_source(data, "val", 32)
    for part in roots:
        assert opening.count_trained_on(trained, {"val": (scored, 0)}, part=part) == {"val": 2}
    data["mixture"]["files"]["limit"] = 7
    limited = opening.open_training_source(data, 32)
    assert opening.count_trained_on(limited, {"val": (scored, 0)}, part="files") == {"val": 1}


@pytest.mark.slow
def test_a_set_without_splits_says_that_it_scores_what_it_trained_on(tmp_path, cli):
    root = pictures(tmp_path / "data", NAMES)
    flags = toy_flags(data__root=str(root), data__splits="{}", data__captions="captions.csv")
    process = cli(TRAIN, *flags, f"--workdir={tmp_path / 'run'}")
    assert process.returncode == 0, process.stderr
    assert "10 of the examples of split val are trained on too" in process.stdout
    assert json.loads((tmp_path / "run" / "result.json").read_text())["protocol"]["examples_trained_on"] == 10
    flags = [f"--config.checkpoint={tmp_path / 'run'}", "--config.evaluation.extra_splits=('test',)"]
    process = cli("--config=configs/evaluate.py", *flags, f"--workdir={tmp_path / 'scored'}")
    assert process.returncode == 0, process.stderr
    assert "10 of the examples of split test are trained on too" in process.stdout
    protocol = json.loads((tmp_path / "scored" / "result.json").read_text())["protocol"]
    assert protocol["examples_trained_on"] == protocol["also"]["test"]["examples_trained_on"] == 10


@pytest.mark.slow
def test_a_mixture_is_trained_and_scored_to_the_end(tmp_path, cli):
    root = pictures(tmp_path / "data", NAMES)
    command = ["--config=configs/pretrain.py:size=tiny,data=files+scenes", f"--workdir={tmp_path / 'run'}"]
    where = f"--config.data.mixture.files.root={root}"
    limits = ["--config.data.mixture.scenes.limit=7", "--config.evaluation.extra_splits=('train',)"]
    for flags, told in (
        ([f"--config.data.root={root}"], "did you mean data.mixture.files.root?"),
        (
            [where, "--config.evaluation.split=novel"],
            "files: there is no split 'novel' in --config.data.mixture.files.",
        ),
    ):
        process = cli(*command, *toy_flags(), *flags)
        assert (process.returncode, process.stderr.count("\n")) == (2, 1) and told in process.stderr
    process = cli(*command, *toy_flags(), where, *limits)
    assert process.returncode == 0, process.stderr
    assert ", 17 pictures, " in process.stdout  # 10 and the first 7
    protocol = json.loads((tmp_path / "run" / "result.json").read_text())["protocol"]
    # val is a part of train; the pictures of scenes are of another set
    assert (protocol["examples_trained_on"], protocol["also"]["train"]["examples_trained_on"]) == (2, 10)
