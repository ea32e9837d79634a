"""Classes by their names are those that the Python API tells; a model without a contrastive space tells them too."""

import json

import numpy as np
import pytest
from PIL import Image

import maskvlm_jax
from configs import finetune
from maskvlm_jax.data.scenes.singles import Singles
from maskvlm_jax.evaluators import prompts
from maskvlm_jax.runtime.errors import UserError
from tests.conftest import toy_config
from tests.reference import exporting as exports
from tests.training.tasks.scored import evaluation_of, without_contrast

NAMES = ("zero_shot_accuracy", "zero_shot_accuracy_5", "zero_shot_accuracy_per_class")


def shares(score_IC, label_I):
    """By counting; a tie is wrong."""
    rank_I = [sum(other >= row[label] for other in row) - 1 for row, label in zip(score_IC, label_I, strict=True)]
    right_I = np.array(rank_I) == 0
    per_class = [right_I[np.array(label_I) == label].mean() for label in set(label_I)]
    values = (right_I.mean(), np.mean(np.array(rank_I) < 5), np.mean(per_class))
    return {name: 100 * value for name, value in zip(NAMES, values, strict=True)}


def test_scenes_are_told_as_the_python_api_tells_them(cli, tmp_path):
    (tmp_path / "trained").mkdir()
    exports.make_workdir(tmp_path / "trained", toy_config())
    flags = [f"--config.checkpoint={tmp_path / 'trained'}", "--config.evaluation.limit=20"]
    flags += ["--config.evaluation.extra_splits=()", "--config.evaluation.batch_size=8"]
    process = cli("--config=configs/finetune.py:task=zero_shot", *flags)
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "trained" / "zero_shot" / "result.json").read_text())
    assert (tmp_path / "trained" / "zero_shot" / "figures" / "zero_shot_confusion_test.png").is_file()
    classes = finetune.get_config("task=zero_shot").data.fields.label.classes
    scenes, model = Singles(split="test", image_size=32), maskvlm_jax.load(tmp_path / "trained")
    told = model.classify([scenes[i]["image"] for i in range(20)], classes, templates=prompts.read_templates("scenes"))
    label_I = [classes.index(scenes[i]["name"]) for i in range(20)]
    assert result["metrics"] == pytest.approx(shares(told, label_I))
    assert result["protocol"]["zero_shot"]["by"] == "contrastive" and result["protocol"]["zero_shot"]["classes"] == 64


def test_a_model_of_matching_alone_tells_by_the_mean_of_its_log_odds(tmp_path):
    (tmp_path / "mine.txt").write_text("{}\na {} on grey\n")
    values = {"evaluation__limit": 4, "evals__zero_shot__templates": str(tmp_path / "mine.txt")}
    config = without_contrast(toy_config(data__tokenizer_captions=100))
    evaluation, params = evaluation_of("zero_shot", tmp_path, config, **values)
    found = evaluation.all(params, "test")
    (one,) = evaluation.evaluators.values()
    classes, data, predictor = one.names("test"), evaluation.run.data("test"), evaluation.predictor(params)
    score_IC = np.zeros((4, len(classes)))
    for number, name in enumerate(classes):
        for text in (name, f"a {name} on grey"):
            tokens_L, _, valid_L = evaluation.run.tokenizer.encode(text, 20)
            text_BLD, _ = predictor.encode_text(np.stack([tokens_L] * 4), np.stack([valid_L] * 4))
            images = predictor.prepare_images(predictor.encode_image(data.images[np.arange(4)])[0])
            texts = predictor.prepare_texts(text_BLD, np.stack([valid_L] * 4))
            score_IC[:, number] += np.asarray(predictor.match(images, texts, np.arange(4), np.arange(4))) / 2
    label_I = data.of_picture["label"][np.arange(4)].tolist()
    assert found == pytest.approx(shares(score_IC, label_I))
    assert evaluation.protocol("test")["zero_shot"]["by"] == "matching"
    assert one.metrics(evaluation.run.objectives) == NAMES


def folders(root, split, classes, count=2):
    for number, name in enumerate(classes):
        for picture in range(count):
            path = root / split / name / f"{picture}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (40 * number, 20 * picture, 90)).save(path)


def test_folders_of_classes_name_them(tmp_path):
    folders(tmp_path / "set", "train", ["cat", "dog", "red panda"])
    folders(tmp_path / "set", "val", ["cat", "red panda"])
    values = {"data__source": "image_folder", "data__root": str(tmp_path / "set")}
    label = {f"data__fields__label__{key}": value for key, value in (("key", "label"), ("classes", ()), ("count", 0))}
    evaluation, params = evaluation_of("zero_shot", tmp_path, **values, **label, evals__zero_shot__templates="plain")
    assert set(evaluation.all(params, "val")) == set(NAMES)
    assert evaluation.protocol("val")["zero_shot"]["classes"] == 3
    (one,) = evaluation.evaluators.values()
    assert one.names("val") == ("cat", "dog", "red panda")
    one.options["names"] = str(tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("a tabby\na dog\n")
    with pytest.raises(UserError, match=r"val/red panda/0\.png is of class 2, and 2 classes have names; name them all"):
        evaluation.all(params, "val")


def test_classes_that_are_numbers_alone_need_names(tmp_path):
    label = {
        f"data__fields__label__{key}": value for key, value in (("key", "objects.count"), ("classes", ()), ("count", 9))
    }
    evaluation, params = evaluation_of("zero_shot", tmp_path, evaluation__limit=3, **label)
    with pytest.raises(UserError, match=r"classes have no names; set --config\.data\.fields\.label\.classes, or"):
        evaluation.all(params, "test")


def test_files_are_folders_of_classes():
    config = finetune.get_config("task=zero_shot,data=files")
    assert (config.data.source, config.data.images, config.data.splits.to_dict()) == (
        "image_folder",
        "",
        {"train": "train", "val": "val", "test": "test"},
    )
    assert config.evals.zero_shot.templates == "photographs"
