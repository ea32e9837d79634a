"""Grounding scores a checkpoint at once, and its scores are those of an oracle."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from configs import finetune
from maskvlm_jax.data.fields import boxes
from maskvlm_jax.data.fields.base import Drawn
from maskvlm_jax.evaluators import heat as heats
from maskvlm_jax.evaluators import heat_sheet
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.training.tasks import grounding
from tests.conftest import toy_config
from tests.reference import exporting as exports
from tests.reference import numpy_heat

COUNT, GRID, MOST = 23, 3, 4


def test_it_scores_at_once_and_again_the_same(cli, tmp_path):
    (tmp_path / "trained").mkdir()
    exports.make_workdir(tmp_path / "trained", toy_config())
    flags = [f"--config.checkpoint={tmp_path / 'trained'}", "--config.evaluation.limit=12"]
    flags += [
        "--config.evaluation.batch_size=8",
        "--config.evaluation.figures=2",
        "--config.evaluation.choose_images=9",
    ]
    process = cli("--config=configs/finetune.py:task=grounding", *flags)
    assert process.returncode == 0, process.stderr
    folder = tmp_path / "trained" / "grounding"
    result = json.loads((folder / "result.json").read_text())
    names = {"accuracy", "chance", "largest", "pointing", "pointing_chance"}
    assert result["metrics"].keys() == {f"{part}grounding_{name}" for part in ("", "novel/") for name in names}
    assert 33 < result["metrics"]["grounding_chance"] < 50
    chosen = result["protocol"]["grounding"]
    assert chosen["heat_of"] == "log-odds of matching" and chosen["of_layers"] == 2
    scores = chosen["layer_chosen_on"]["grounding_accuracy"]
    assert chosen["layer_chosen_on"]["images"] == 9 and chosen["layer"] == int(np.argmax(scores))
    assert (folder / "figures" / "heat_test.png").stat().st_size > 1_000
    flags += [f"--config.evals.grounding.layer={chosen['layer']}", f"--workdir={tmp_path / 'again'}"]
    process = cli("--config=configs/finetune.py:task=grounding", *flags)
    assert process.returncode == 0, process.stderr
    again = json.loads((tmp_path / "again" / "result.json").read_text())
    assert again["metrics"] == result["metrics"] and "layer_chosen_on" not in again["protocol"]["grounding"]


class Rows:
    """A predictor over heat that is there already."""

    def __init__(self, heat_IN):
        self.heat_IN = heat_IN

    def fetch(self, function, batch):
        return heats.Heat(None, self.heat_IN[batch["rows"]], None)


class Pictures:
    """Examples with boxes in whole pixels of pictures of several sizes."""

    images = range(COUNT)
    first_captions = np.arange(COUNT)

    def __init__(self, examples):
        field = boxes.Field("boxes", None, most=MOST)
        made = [field.make(Drawn(one, None, "", {}, None), None) for one in examples]
        self.of_picture = {name: np.stack([one[name] for one in made]) for name in made[0]}

    def batch(self, pictures, texts, valid):
        return {"rows": pictures, **{name: values[pictures] for name, values in self.of_picture.items()}}


def example(rng, i):
    height, width = rng.integers(9, 30, 2).tolist()

    def box():
        (x0, x1), (y0, y1) = (np.sort(rng.choice(n + 1, 2, replace=False)).tolist() for n in (width, height))
        return x0, y0, x1, y1

    candidates = [box() for _ in range(rng.integers(1, MOST + 1))]
    true = candidates[0] if rng.random() < 0.5 else box()
    rng.shuffle(candidates)
    return {"id": str(i), "size": (height, width), "box": true, "candidates": candidates}


def scored(examples, heat_IN):
    evaluator = grounding.Evaluator.__new__(grounding.Evaluator)
    evaluator.options, evaluator._layer = {"batch_size": 5}, 0
    evaluator.run = SimpleNamespace(data=lambda split: Pictures(examples))
    return dict(evaluator.evaluate(Rows(heat_IN), "val", final=True))


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_the_oracle(seed):
    rng = np.random.default_rng(seed)
    examples = [example(rng, i) for i in range(COUNT)]
    heat_IN = np.maximum(rng.normal(size=(COUNT, GRID**2)), 0).astype(np.float32)
    heat_IN[3] = 0.0  # knows nothing
    found = scored(examples, heat_IN)
    over = [
        numpy_heat.bicubic(heat.reshape(GRID, GRID), *one["size"]) for heat, one in zip(heat_IN, examples, strict=True)
    ]
    pairs = list(zip(over, examples, strict=True))
    right = [numpy_heat.grounded(heat, one["candidates"], one["box"]) for heat, one in pairs]
    assert found["grounding_accuracy"] == pytest.approx(100 * np.mean(right))
    inside = np.zeros((COUNT, GRID**2), bool)
    for i, one in enumerate(examples):
        (height, width), (x0, y0, x1, y1) = one["size"], one["box"]
        for cell in range(GRID**2):
            row, column = divmod(cell, GRID)
            x, y = (column + 0.5) * width / GRID, (row + 0.5) * height / GRID
            inside[i, cell] = x0 <= x < x1 and y0 <= y < y1
    pointed = [inside[i, heat.argmax()] and heat.max() > 0 for i, heat in enumerate(heat_IN)]
    assert found["grounding_pointing"] == pytest.approx(100 * np.mean(pointed))
    assert found["grounding_pointing_chance"] == pytest.approx(100 * inside.mean())
    # A box at random: heat in that box alone, over all boxes.
    each = []
    for one in examples:
        hits = []
        for box in one["candidates"]:
            alone = np.zeros(one["size"])
            alone[box[1] : box[3], box[0] : box[2]] = 1
            hits.append(numpy_heat.grounded(alone, [box], one["box"]))
        each.append(np.mean(hits))
    assert found["grounding_chance"] == pytest.approx(100 * np.mean(each))
    flat = [numpy_heat.grounded(np.ones(one["size"]), one["candidates"], one["box"]) for one in examples]
    assert found["grounding_largest"] == pytest.approx(100 * np.mean(flat))


def test_where_there_is_nothing_to_choose_from_the_warmest_patch_counts_alone():
    rng = np.random.default_rng(0)
    examples = [example(rng, i) for i in range(COUNT)]
    heat_IN = rng.random((COUNT, GRID**2)).astype(np.float32)
    both = scored(examples, heat_IN)
    found = scored([one | {"candidates": []} for one in examples], heat_IN)
    assert found == {name: both[name] for name in ("grounding_pointing", "grounding_pointing_chance")}
    some = [one | ({"candidates": []} if i < 7 else {}) for i, one in enumerate(examples)]
    assert scored(some, heat_IN)["grounding_accuracy"] <= both["grounding_accuracy"], "without a box it is wrong"


def make(**changes):
    one = {"id": "e", "size": (20, 40), "box": (10, 5, 20, 15), "candidates": [(0, 0, 40, 20)]} | changes
    return boxes.Field("boxes", None, most=2).make(Drawn(one, None, "", {}, None), None)


def test_boxes_are_shares_of_the_picture():
    made = make()
    np.testing.assert_array_equal(made["boxes_true"], np.float32([0.25, 0.25, 0.5, 0.75]))
    np.testing.assert_array_equal(made["boxes_candidates"], np.float32([[0, 0, 1, 1], [0, 0, 0, 0]]))
    assert made["boxes_count"] == 1 and made["boxes_size"].tolist() == [20, 40]
    assert {name: (x.shape, x.dtype) for name, x in made.items()} == {
        name: (array.shape, np.dtype(array.dtype))
        for name, array in boxes.Field("boxes", None, most=2).arrays().items()
    }
    assert make(candidates=[])["boxes_count"] == 0 and make(box=(-3, -3, 99, 99))["boxes_true"][0] < 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box": (10, 5, 10, 15)}, r"e has the box \(10, 5, 10, 15\), no part of which is in its 40 x 20 pixels"),
        ({"box": (50, 5, 60, 15)}, "no part of which"),
        ({"box": (float("nan"), 5, 60, 15)}, "no part of which"),
        ({"candidates": [(0, 0, 1, 1)] * 3}, r"e has 3 candidates; set --config\.data\.fields\.boxes\.most"),
    ],
)
def test_boxes_that_are_none_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)


@pytest.mark.parametrize("lacking", ["box", "size"])
def test_an_example_without_a_box_is_refused(lacking):
    one = {"id": "e", "size": (20, 40), "box": (10, 5, 20, 15)}
    del one[lacking]
    with pytest.raises(UserError, match=f"e has no '{lacking}', which data.fields.boxes reads"):
        boxes.Field("boxes", None).make(Drawn(one, None, "", {}, None), None)


def test_official_files_are_read_by_their_own_source():
    config = finetune.get_config("task=grounding,data=files")
    assert (config.task, config.data.source, config.data.captions) == ("evaluate", "refcoco", "refs(unc).json")
    assert (config.evaluation.split, config.evaluation.extra_splits) == ("testA", ("testB",))


@pytest.mark.parametrize(("layer", "message"), [("third", "give auto or a number"), ("5", "there is no layer 5")])
def test_a_layer_that_is_none_is_refused(layer, message):
    run = SimpleNamespace(config=toy_config(), objectives={"matching": grounding.ScoresPairs})
    with pytest.raises(UserError, match=message):
        grounding.Evaluator(run, {"layer": layer})


def test_a_sheet_is_warm_where_the_heat_is():
    pixels, heat_N = np.full((30, 30, 3), 100, np.uint8), np.zeros(9, np.float32)
    heat_N[5] = 1.0
    drawn = heat_sheet.over(pixels, heat_N).astype(int)
    assert drawn[15, 25, 0] > 200 and drawn[15, 5, 0] == drawn[15, 5, 1] == 45
    row = heat_sheet.Shown(
        pixels, "red star", ["red", "star"], heat_N, np.stack([heat_N] * 2), np.array([0.1, 0.1, 0.5, 0.5])
    )
    assert heat_sheet.sheet([row, row._replace(words=[], word_WN=np.zeros((0, 9)))]).shape[1] == 8 + 4 * 128
