"""Classification learns the classes of pictures, and its scores are those of an oracle."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import maskvlm_jax
from configs import finetune
from maskvlm_jax.data.scenes.world import SHAPES
from maskvlm_jax.data.sources.opening import open_source
from maskvlm_jax.objectives.base import Classifies
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import rules
from maskvlm_jax.training.tasks import classification
from tests.conftest import toy_config, toy_flags
from tests.reference import exporting as exports

FLAGS = [
    "--config.data.scenes_seed=1",
    "--config.evaluation.extra_splits=()",
    "--config.evaluation.batch_size=5",
]


def test_classes_are_learned_and_scored_and_nothing_else_changes(cli, tmp_path):
    (tmp_path / "trained").mkdir()
    exports.make_workdir(tmp_path / "trained", toy_config())
    values = {"steps": 3, "evaluation__limit": 12, "data__fields__label__key": "objects.0.shape"}
    flags = [flag for flag in toy_flags(**values) if "decoder" not in flag]
    flags += [f"--config.data.fields.label.classes={SHAPES}", f"--config.data.fields.label.count={len(SHAPES)}"]
    flags += [f"--config.checkpoint={tmp_path / 'trained'}", *FLAGS]
    process = cli("--config=configs/finetune.py:task=classification", *flags, f"--workdir={tmp_path / 'run'}")
    assert process.returncode == 0, process.stderr
    assert "vlm/text_encoder/embedding" in process.stdout  # among what stays as it is
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metrics"].keys() == {
        "classification_accuracy",
        "classification_accuracy_5",
        "classification_accuracy_per_class",
    }
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["objectives"]["classification"]["classes"] == len(SHAPES)
    scored = cli("--config=configs/evaluate.py", f"--config.checkpoint={tmp_path / 'run'}")
    assert scored.returncode == 0, scored.stderr
    again = json.loads((tmp_path / "run" / "evaluation" / "result.json").read_text())
    assert again["metrics"] == result["metrics"]
    model = maskvlm_jax.load(tmp_path / "run")
    source = open_source(model.config.data.to_dict(), "test", model.image_size)
    examples = [source[i] for i in range(12)]
    told = model.predict([example["image"] for example in examples]).argmax(axis=1)
    right = [model.class_names[i] == one["objects"][0]["shape"] for i, one in zip(told, examples, strict=True)]
    assert 100 * np.mean(right) == pytest.approx(result["metrics"]["classification_accuracy"])
    with pytest.raises(ValueError, match="reads no texts"):
        model.predict(examples[0]["image"], "a red square")
    with pytest.raises(ValueError, match="tells no answers: it was trained without"):
        model.answer(examples[0]["image"], "is there a red square")


class Rows:
    """A predictor over logits that are there already."""

    def __init__(self, logits_IC):
        self.logits_IC = jnp.asarray(logits_IC)

    def offers(self, role):
        return role is Classifies

    def fetch(self, function, batch):
        objective = SimpleNamespace(label="label", logits=lambda ctx: self.logits_IC[ctx["rows"]])
        found = function(SimpleNamespace(offering=lambda role: objective, context=dict), batch)
        return tuple(map(np.asarray, found))


class Pictures:
    images = range(23)
    first_captions = np.arange(23)

    def __init__(self, label_I):
        self.label_I = label_I

    def batch(self, pictures, texts, valid):
        return {"rows": pictures, "label": self.label_I[pictures]}


@pytest.mark.parametrize("classes", [3, 8])
def test_scores_are_those_counted_by_hand(classes):
    rng = np.random.default_rng(classes)
    logits_IC, label_I = rng.normal(size=(23, classes)), rng.integers(0, classes, 23)
    evaluator = classification.Evaluator.__new__(classification.Evaluator)
    evaluator.options = {"batch_size": 5}
    evaluator.run = type("Run", (), {"data": lambda self, split: Pictures(label_I)})()
    found = dict(evaluator.evaluate(Rows(logits_IC), "val", final=True))
    order = np.argsort(-logits_IC, axis=1)
    right = [order[i][0] == label_I[i] for i in range(23)]
    assert found["classification_accuracy"] == pytest.approx(100 * np.mean(right))
    assert found["classification_accuracy_5"] == pytest.approx(
        100 * np.mean([label_I[i] in order[i][:5] for i in range(23)])
    )
    per_class = [np.mean([right[i] for i in range(23) if label_I[i] == c]) for c in set(label_I.tolist())]
    assert found["classification_accuracy_per_class"] == pytest.approx(100 * np.mean(per_class))


def test_what_is_no_number_is_not_right():
    logits_IC = np.full((23, 8), np.nan, np.float32)
    evaluator = classification.Evaluator.__new__(classification.Evaluator)
    evaluator.options = {"batch_size": 5}
    evaluator.run = type("Run", (), {"data": lambda self, split: Pictures(np.zeros(23, int))})()
    assert set(dict(evaluator.evaluate(Rows(logits_IC), "val", final=True)).values()) == {0.0}


def test_how_many_classes_there_are_must_be_said():
    with pytest.raises(UserError, match=r"how many classes are there\? set --config\.data\.fields\.label\.count"):
        rules.check(finetune.get_config("task=classification,data=files"))
