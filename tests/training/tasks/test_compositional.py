"""True and false captions are told apart as the benchmarks count it, by every score that a model has."""

import json

import numpy as np
import pytest

import maskvlm_jax
from configs import finetune
from maskvlm_jax.data.scenes.swaps import KINDS, Swaps
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.training.tasks import compositional
from maskvlm_jax.training.tasks.compositional import Case
from tests.conftest import toy_config
from tests.data.sources.test_alternatives import item, png, put
from tests.reference import exporting as exports
from tests.reference import numpy_compositional as oracle
from tests.training.tasks.scored import evaluation_of, without_contrast

FLAGS = ["--config.evaluation.limit=15", "--config.evaluation.batch_size=8"]


def cases(count_I, kind="k", family="", group=None, tag=None) -> Case:
    count_I = np.array(count_I)
    size = len(count_I)
    columns = ([kind] * size, [family] * size, group or [""] * size, tag or [""] * size)
    return Case(np.concatenate([[0], np.cumsum(count_I)[:-1]]), count_I, *map(np.array, columns))


@pytest.mark.parametrize("most", [2, 5])
def test_accuracy_is_that_of_the_benchmark_s_program(most):
    rng = np.random.default_rng(most)
    found = cases([most] * 40)
    score_T = rng.integers(0, 4, 40 * most).astype(np.float32)  # with many ties
    right = compositional.right(score_T, found, np.zeros(len(score_T), bool))
    assert 100 * right.mean() == pytest.approx(oracle.accuracy(score_T.reshape(40, most).tolist()))


def test_what_is_no_number_or_has_the_same_tokens_is_wrong():
    found = cases([2, 2, 2, 2])
    score_T = np.array([np.nan, 0, 1, np.nan, 2, 1, 2, 1], np.float32)
    same_T = np.array([0, 0, 0, 0, 0, 1, 0, 0], bool)
    assert compositional.right(score_T, found, same_T).tolist() == [False, False, False, True]


def test_groups_are_scored_as_the_paper_defines():
    rng = np.random.default_rng(0)
    items = rng.integers(0, 3, (200, 2, 2)).astype(np.float32)  # s[caption][picture]
    # Two examples an item: its own caption first, then the other's, on the same picture.
    score_T = np.concatenate([[s[0, 0], s[1, 0], s[1, 1], s[0, 1]] for s in items])
    found = cases([2] * 400, group=[str(number // 2) for number in range(400)])
    groups = compositional.of_groups(score_T, found, np.zeros(800, bool))
    scores = tuple(100 * groups[name].mean() for name in ("text", "image", "group"))
    assert scores == pytest.approx(oracle.winoground(items.tolist()))
    assert 0 < scores[2] < scores[0]


def test_a_group_that_lacks_a_picture_is_left_out():
    found = cases([2] * 5, group=["a", "a", "b", "c", "c"])
    assert compositional.pairs(found).tolist() == [[0, 1], [3, 4]]


@pytest.fixture(scope="module")
def swaps(tmp_path_factory):
    values = {"evaluation__limit": 15, "evaluation__batch_size": 4}
    return evaluation_of("compositional", tmp_path_factory.mktemp("swaps"), **values)


def test_scenes_have_all_kinds_and_every_score(swaps):
    evaluation, params = swaps
    values = evaluation.all(params, "test")
    ways = ("itc", "itm", "itm+itc")
    assert set(values) == {f"{kind}_{way}" for kind in (*KINDS, "swap_attribute_mean") for way in ways}
    for way in ways:
        mean = np.mean([values[f"{kind}_{way}"] for kind in KINDS[:4]])
        assert values[f"swap_attribute_mean_{way}"] == pytest.approx(mean)
    protocol = evaluation.protocol("test")
    assert protocol["chance"] == dict.fromkeys(KINDS, 50.0)
    assert (protocol["images"], protocol["captions"], protocol["captions_of_equal_tokens"]) == (15, 30, 0)
    (one,) = evaluation.evaluators.values()
    page = one.figures(evaluation.predictor(params), "test").pages["compositional"]
    assert page.count("| swap_") == 5 and "| kind | tag | cases | itc | itm | itm+itc |" in page


def test_a_model_is_scored_by_what_it_has(tmp_path):
    matching = evaluation_of("compositional", tmp_path, without_contrast(toy_config()), evaluation__limit=5)
    assert {name.rpartition("_")[2] for name in matching[0].all(matching[1], "test")} == {"itm"}
    contrast = evaluation_of("compositional", tmp_path / "clip", toy_config("recipe=clip"), evaluation__limit=5)
    assert {name.rpartition("_")[2] for name in contrast[0].all(contrast[1], "test")} == {"itc"}
    neither = evaluation_of("compositional", tmp_path / "m3ae", toy_config("recipe=m3ae"), evaluation__limit=5)
    assert neither[0].all(neither[1], "test") == {}


def test_captions_that_were_lost_and_sets_without_false_ones_are_told(tmp_path):
    evaluation, params = evaluation_of("compositional", tmp_path, evaluation__captions_per_image=1)
    with pytest.raises(UserError, match=r"swap_colour-test-000000 has 1 captions, other cases of swap_colour 2; set"):
        evaluation.all(params, "test")
    evaluation, params = evaluation_of("compositional", tmp_path / "scenes", data__source="scenes", evaluation__limit=3)
    with pytest.raises(UserError, match=r"test-000000 has no false captions; set --config\.data\.source to sugarcrepe"):
        evaluation.all(params, "test")


def test_files_are_sugarcrepe_s_until_another_reader_is_named():
    config = finetune.get_config("task=compositional,data=files")
    assert (config.data.source, config.data.images, config.data.captions, len(config.data.splits)) == (
        "sugarcrepe",
        "",
        "",
        0,
    )


@pytest.mark.slow
def test_the_command_scores_what_the_python_api_computes(cli, tmp_path):
    (tmp_path / "trained").mkdir()
    exports.make_workdir(tmp_path / "trained", toy_config())
    flags = [f"--config.checkpoint={tmp_path / 'trained'}", *FLAGS]
    process = cli("--config=configs/finetune.py:task=compositional", *flags)
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "trained" / "compositional" / "result.json").read_text())
    assert (tmp_path / "trained" / "compositional" / "figures" / "compositional_test.md").is_file()
    model, scenes = maskvlm_jax.load(tmp_path / "trained"), Swaps(split="test", image_size=32)
    right = {name: [] for name in result["metrics"]}
    for index in range(15):
        example = scenes[index]
        cosines = model.encode_texts(example["captions"]) @ model.encode_images(example["image"])
        odds, _ = model.rerank(example["image"], example["captions"], 0 * cosines)
        for way, scores in {"itc": cosines, "itm": odds, "itm+itc": odds + cosines / model.temperature}.items():
            right[f"{example['kind']}_{way}"].append(tuple(scores.tolist()))
    for name, scores in right.items():
        assert "mean" in name or result["metrics"][name] == pytest.approx(oracle.accuracy(scores)), name
    again = cli("--config=configs/finetune.py:task=compositional", *flags, f"--workdir={tmp_path / 'again'}")
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "again" / "result.json").read_text())["metrics"] == result["metrics"]


def test_winoground_is_scored_from_its_files(tmp_path):
    lines = [item(number, caption_1=f"{number} a young person kisses") for number in range(4)]
    put(tmp_path / "set" / "examples.jsonl", "\n".join(map(json.dumps, lines)))
    for number in range(4):
        for side in (0, 1):
            put(tmp_path / "set" / "images" / f"ex_{number}_img_{side}.png", png(60 * number + 20 * side))
    (tmp_path / "set" / "images" / "ex_3_img_1.png").write_bytes(b"broken")
    values = {"data__root": str(tmp_path / "set"), "data__source": "winoground"}
    evaluation, params = evaluation_of("compositional", tmp_path, **values)
    values = evaluation.all(params, "test")
    names = {f"winoground_{score}_{way}" for score in ("text", "image", "group") for way in ("itc", "itm", "itm+itc")}
    assert set(values) == names
    protocol = evaluation.protocol("test")
    assert protocol["chance"] == pytest.approx(
        {"winoground_text": 25, "winoground_image": 25, "winoground_group": 50 / 3}
    )
    assert (protocol["broken_images"], protocol["groups_left_out"]) == (1, 1)
