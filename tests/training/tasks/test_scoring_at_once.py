"""A task that trains nothing is an evaluation of its own: its evaluator alone scores, into a folder of its name."""

import json

import pytest

from configs import finetune, pretrain
from maskvlm_jax.settings import plain_values
from maskvlm_jax.settings.command_line import default_workdir
from tests.conftest import toy_config
from tests.reference import exporting as exports

MOST_OBJECTS = """
import numpy as np
from ml_collections import ConfigDict

from maskvlm_jax.evaluators import base

TRAINS = False


def task(config, here):
    config.data.fields.objects = ConfigDict({"name": "label", "key": "objects.count"})
    config.evals.objects = ConfigDict({"name": here, "during": False})


class Evaluator(base.Evaluator):
    def evaluate(self, predictor, split, *, final):
        data = self.run.data(split)
        yield "most_objects", float(data.of_picture["objects"][np.arange(len(data.ids))].max())
"""


@pytest.fixture(scope="module")
def task_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "most_objects.py"
    path.write_text(MOST_OBJECTS)
    return path


def test_its_config_is_that_of_an_evaluation(task_file):
    config = finetune.get_config(f"task={task_file},data=flickr8k")
    assert (config.task, config.data.root, "optim" in config) == ("evaluate", "data/flickr8k", False)
    config.checkpoint = "runs/one"
    assert default_workdir(config) == "runs/one/most_objects"
    merged = plain_values.merge_evaluation(pretrain.get_config(), config)
    assert list(merged.evals) == ["objects"] and list(merged.data.fields) == ["objects"]


def test_recipe_and_size_are_the_checkpoint_s(task_file):
    with pytest.raises(ValueError, match="no structure 'recipe'; choose among data"):
        finetune.get_config(f"task={task_file},recipe=albef")


def test_it_scores_at_once(cli, task_file, tmp_path):
    (tmp_path / "trained").mkdir()
    exports.make_workdir(tmp_path / "trained", toy_config())
    flags = [f"--config.checkpoint={tmp_path / 'trained'}", "--config.evaluation.limit=12"]
    process = cli(f"--config=configs/finetune.py:task={task_file}", *flags)
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "trained" / "most_objects" / "result.json").read_text())
    assert result["metrics"] == {"most_objects": 3.0, "novel/most_objects": 3.0}
    assert result["protocol"]["images"] == 12
