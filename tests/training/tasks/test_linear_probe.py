"""A linear layer on frozen features tells what they hold, and is fitted to nothing that is scored."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from maskvlm_jax.evaluators import linear_probe, logistic
from maskvlm_jax.evaluators.classes import Predictions
from maskvlm_jax.runtime.errors import UserError
from tests.conftest import toy_config
from tests.reference import exporting as exports
from tests.training.tasks.scored import evaluation_of, without_contrast
from tests.training.tasks.test_zero_shot import folders

QUICK = {"evaluation__limit": 20, "evaluation__batch_size": 8}
for _label in ("shape", "colour"):
    QUICK |= {f"evals__linear_probe_{_label}__train_limit": 60, f"evals__linear_probe_{_label}__steps": 30}


@pytest.mark.slow
def test_the_command_tells_shape_and_colour(cli, tmp_path):
    (tmp_path / "trained").mkdir()
    exports.make_workdir(tmp_path / "trained", toy_config())
    flags = [f"--config.checkpoint={tmp_path / 'trained'}", "--config.evaluation.extra_splits=()"]
    flags += [f"--config.{name.replace('__', '.')}={value}" for name, value in QUICK.items()]
    process = cli("--config=configs/finetune.py:task=linear_probe", *flags)
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "trained" / "linear_probe" / "result.json").read_text())
    names = {f"linear_probe_{label}_accuracy" for label in ("shape", "colour")}
    assert result["metrics"].keys() == names | {f"{name}_per_class" for name in names}
    told = result["protocol"]["linear_probe_colour"]
    assert (told["train_images"], told["features"], told["C_chosen_on"]) == (60, "mean", "val")
    again = cli("--config=configs/finetune.py:task=linear_probe", *flags, f"--workdir={tmp_path / 'again'}")
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "again" / "result.json").read_text()) == result


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return evaluation_of("linear_probe", tmp_path_factory.mktemp("probe"), **QUICK)


@pytest.mark.parametrize("features", linear_probe.FEATURES)
def test_features_are_those_of_the_model(scenes, features):
    evaluation, params = scenes
    predictor, one = evaluation.predictor(params), evaluation.evaluators["linear_probe_shape"]
    one.options["features"] = features
    feature_IF, label_I = one._features(predictor, "val", 5)
    data = evaluation.run.data("val", 5)
    image_ISD, image_IE = predictor.encode_image(data.images[np.arange(5)])
    wanted = {"embedding": image_IE, "first": image_ISD[:, 0], "mean": image_ISD[:, 1:].mean(axis=1)}
    np.testing.assert_allclose(feature_IF, wanted.get(features, image_ISD[:, 0]), atol=1e-5)
    assert label_I.tolist() == data.of_picture["shape"][np.arange(5)].tolist()


def test_it_tells_what_a_fit_to_the_training_split_tells(scenes):
    evaluation, params = scenes
    predictor, one = evaluation.predictor(params), evaluation.evaluators["linear_probe_colour"]
    one.prepare(predictor)
    found = dict(one.evaluate(predictor, "test", final=True))
    (train, told), (test, right) = (
        one._features(predictor, split, limit) for split, limit in (("train", 60), ("test", None))
    )
    fit = logistic.fit(train, told, 8, one.protocol("test")["linear_probe_colour"]["C"], steps=30)
    assert found["linear_probe_colour_accuracy"] == pytest.approx(
        100 * np.mean(fit.logits(test).argmax(axis=1) == right)
    )


def test_where_the_validation_split_is_scored_a_fifth_of_training_is_held_out(tmp_path):
    folders(tmp_path / "set", "train", ["cat", "dog", "red panda"], count=10)
    folders(tmp_path / "set", "val", ["cat", "dog", "zebra"])
    values = {"data__source": "image_folder", "data__root": str(tmp_path / "set"), "evaluation__split": "val"}
    field = {"name": "label", "key": "label", "classes": (), "count": 0}
    label = {f"data__fields__{name}": ConfigDict(field) for name in ("shape", "colour")}
    evaluation, params = evaluation_of(
        "linear_probe", tmp_path, **values, **label, **QUICK, evaluation__extra_splits=()
    )
    predictor, one = evaluation.predictor(params), evaluation.evaluators["linear_probe_shape"]
    one.prepare(predictor)
    found = dict(one.evaluate(predictor, "val", final=True))
    assert found["linear_probe_shape_accuracy"] <= 100 * 4 / 6  # no zebra was seen
    told = one.protocol("val")["linear_probe_shape"]
    assert told["C_chosen_on"] == "every fifth example of train" and told["train_images"] == 30


def test_what_is_no_feature_of_the_model_is_told(tmp_path):
    with pytest.raises(UserError, match="features 'patches' are none; choose among embedding, pooled, first, mean"):
        evaluation_of("linear_probe", tmp_path, evals__linear_probe_shape__features="patches")
    config = without_contrast(toy_config(data__tokenizer_captions=100))
    with pytest.raises(UserError, match="no contrastive space, which features=pooled reads; take mean"):
        evaluation_of("linear_probe", tmp_path / "b", config, evals__linear_probe_shape__features="pooled")


def test_ties_and_what_is_no_number_are_wrong():
    logits_IC = np.array([[1, 1, 0], [np.nan, 0, 0], [0, 2, 1], [0, 0, 1]], np.float32)
    found = Predictions.of(logits_IC, np.array([0, 1, 1, 0]))
    assert found.right_I.tolist() == [False, False, True, False] and found.rank_I.tolist() == [1, 2, 0, 2]
