"""Tasks of pairs: trained, scored and scored again from a command line, and their scores against an oracle."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import maskvlm_jax
from configs import finetune
from maskvlm_jax.data import examples
from maskvlm_jax.data.sources.opening import open_source
from maskvlm_jax.evaluators.classes import Predictions
from maskvlm_jax.serving.exports import exporting
from maskvlm_jax.settings import rules
from maskvlm_jax.training.tasks import nlvr, pairs
from tests.conftest import toy_config, toy_flags
from tests.reference import exporting as exports
from tests.reference import numpy_classes

METRICS = {
    "entailment": {"entailment_accuracy", "entailment_accuracy_per_class"},
    "nlvr": {"nlvr_accuracy", "nlvr_accuracy_per_class", "nlvr_consistency"},
    "pairs": {"pairs_accuracy", "pairs_pr_auc", "pairs_roc_auc"},
}
FLAGS = ["--config.evaluation.extra_splits=()", "--config.evaluation.batch_size=5"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a model to start from."""
    folder = tmp_path_factory.mktemp("trained")
    exports.make_workdir(folder, toy_config())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("task", METRICS)
def test_a_task_is_trained_and_scored_and_scored_again(cli, trained, tmp_path, task):
    flags = [flag for flag in toy_flags(steps=3, evaluation__limit=16) if "decoder" not in flag]
    flags += [f"--config.checkpoint={trained}", *FLAGS]
    process = cli(f"--config=configs/finetune.py:task={task}", *flags, f"--workdir={tmp_path / 'run'}")
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metrics"].keys() == METRICS[task]
    assert all(0 <= value <= 100 for value in result["metrics"].values())
    scored = cli("--config=configs/evaluate.py", f"--config.checkpoint={tmp_path / 'run'}")
    assert scored.returncode == 0, scored.stderr
    again = json.loads((tmp_path / "run" / "evaluation" / "result.json").read_text())
    assert again["metrics"] == result["metrics"]
    told = asked_in_python(maskvlm_jax.load(tmp_path / "run"), task, count=16)
    assert told == pytest.approx(result["metrics"][f"{task}_accuracy"])
    exporting.export(str(tmp_path / "run"), str(tmp_path / "out"))
    exported = maskvlm_jax.load(tmp_path / "out")
    assert exported.parameters_sha256 == result["protocol"]["parameters_sha256"]
    assert asked_in_python(exported, task, count=16) == pytest.approx(told)


def asked_in_python(model, task: str, count: int) -> float:
    """Accuracy of what `Model.predict` tells of the first scored examples, in percent."""
    source = open_source(model.config.data.to_dict(), "test", model.image_size)
    examples = [source[i] for i in range(count)]

    def column(key: str) -> list:
        """What all have under a key, None where it is absent."""
        return [None if key in one.get("absent", ()) else one[key] for one in examples]

    given = {"images": column("image"), "texts": [text and text[0] for text in column("captions")]}
    if task != "entailment":
        given["second_images"] = column("image2")
    if task == "pairs":
        given["second_texts"] = column("text2")
    probability = model.predict(**given)
    assert probability.shape == (count, len(model.class_names)) and np.allclose(probability.sum(axis=1), 1, atol=1e-5)
    alone = {name: one[0] for name, one in given.items()}
    if task == "nlvr":  # one of each but of the second pictures, one of each, and counts that do not agree
        several = model.predict(**alone | {"second_images": given["second_images"][:3]})
        np.testing.assert_allclose(several[0], probability[0], atol=1e-5)
        assert several.shape == (3, 2) and model.predict(**alone).shape == (2,)
        with pytest.raises(ValueError, match="there are 2 texts and 3 second_images; give as many of each, or one"):
            model.predict(
                **alone | {"texts": given["texts"][:2], "second_images": given["second_images"][:3]},
            )
    right = [
        model.class_names[row.argmax()] == str(example["label"])
        for row, example in zip(probability, examples, strict=True)
    ]
    return 100 * float(np.mean(right))


@pytest.mark.parametrize("task", METRICS)
@pytest.mark.parametrize(
    "structure", ["", "recipe=albef", "recipe=mlim", "recipe=eve", "data=files", "size=base,data=files"]
)
def test_a_config_of_the_task_can_be_built_on_any_model_that_fuses(task, structure):
    config = finetune.get_config(f"task={task},{structure}".rstrip(","))
    rules.check(config)
    shapes = examples.batch_shapes(config)
    assert shapes["label"] == ((config.batch_size,), np.int32)
    assert ("image2" in shapes, "text2_tokens" in shapes) == (task != "entailment", task == "pairs")
    if "files" in structure:
        assert config.evaluation.split == "test" and set(config.data.splits) == {"train", "val", "test"}
        assert config.data.source in ("snli_ve", "nlvr2", "product_pairs")
        assert (config.optim.lr == 2e-5) == ("base" in structure)


def test_a_mixture_is_refused():
    with pytest.raises(ValueError, match="a mixture is not read by this task; give one set, data=files"):
        finetune.get_config("task=nlvr,data=coco+vg")


# --- scores ----------------------------------------------------------------------------------------------------------


def test_consistency_is_that_of_the_official_script():
    rng = np.random.default_rng(0)
    ids = [f"dev-{number}-{pair}-{said}" for number in (1, 11) for pair in range(4) for said in range(2)]
    right = ~np.isin(np.arange(16), (0, 4, 9))  # 0 and 4 are of one sentence
    expected = numpy_classes.nlvr2_scores(ids, right)
    evaluator = nlvr.Evaluator.__new__(nlvr.Evaluator)
    evaluator.run = SimpleNamespace(data=lambda split: SimpleNamespace(ids=ids))
    label_I = rng.integers(0, 2, 16)
    told_I = np.where(right, label_I, 1 - label_I)
    found = dict(evaluator.scores(Predictions(told_I, np.where(right, 0, 1), label_I), "dev"))
    assert found["nlvr_accuracy"] == pytest.approx(expected["accuracy"])
    assert found["nlvr_consistency"] == pytest.approx(expected["consistency"])
    assert (expected["accuracy"], expected["consistency"]) == (81.25, 50.0)


class Scored:
    """A predictor over scores that are there already."""

    def __init__(self, score_I, label_I):
        score_I = np.asarray(score_I, float)
        self.arrays = np.stack([np.zeros_like(score_I), score_I], axis=1), np.asarray(label_I)

    def offers(self, role):
        return True

    def scores(self):
        evaluator = pairs.Evaluator.__new__(pairs.Evaluator)
        evaluator.fetched = lambda predictor, split, function: self.arrays
        return dict(evaluator.evaluate(self, "val", final=True))


@pytest.mark.parametrize("ties", [False, True])
def test_areas_under_curves_are_those_of_the_definition(ties):
    rng = np.random.default_rng(3)
    label = rng.random(60) < 0.4
    score = rng.normal(size=60) + label
    score = np.round(score) + 0.5 if ties else score
    found, expected = Scored(score, label.astype(int)).scores(), numpy_classes.binary_scores(score, label)
    assert found == pytest.approx(expected)


def test_extreme_scores():
    label = np.array([1, 1, 0, 0])
    assert set(Scored([3, 2, -1, -2], label).scores().values()) == {100.0}
    assert Scored([-3, -2, 1, 2], label).scores()["pairs_accuracy"] == 0.0
    nothing = Scored([np.nan] * 4, label).scores()
    assert nothing == pytest.approx({"pairs_accuracy": 0.0, "pairs_pr_auc": 50.0, "pairs_roc_auc": 0.0})
