"""Where in a picture is what an expression speaks of? Asked of a model that has never seen a box (RefCOCO+ as ALBEF has
it, arXiv 2107.07651, Sec. 6): it is scored by the heat of `evaluators.heat`, and nothing is trained.

Two scores, whose chance is beside them:

    grounding_accuracy   of the boxes that an expression can be chosen from, the one with the largest sum of heat over
                         the root of its area overlaps the true one by half (IoU >= 0.5)
    grounding_pointing   the middle of the warmest patch lies in the true box

On scenes the boxes are those of the scene's objects; of RefCOCO they are a detector's, where there are some.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from maskvlm_jax.data.evaluation_set import EvaluationSet, padded
from maskvlm_jax.data.scenes.expressions import MOST_OBJECTS
from maskvlm_jax.evaluators import base, heat_sheet
from maskvlm_jax.evaluators import heat as heats
from maskvlm_jax.evaluators.predictor import Predictor
from maskvlm_jax.evaluators.scored_run import ScoredRun
from maskvlm_jax.objectives.base import ScoresPairs, TrainsEmbeddings, objective_of
from maskvlm_jax.runtime.errors import UserError

TRAINS = False
FIELD = "boxes"


def task(config: ConfigDict, here: str) -> None:
    data, options = config.data, config.evaluation
    if data.source == "scenes":
        data.source, most = "maskvlm_jax.data.scenes.expressions", MOST_OBJECTS
    else:
        data.source, data.images, data.captions, data.splits = "refcoco", "train2014", "refs(unc).json", ConfigDict()
        options.split, options.extra_splits, most = "testA", ("testB",), 100
    data.fields[FIELD] = ConfigDict({"name": "boxes", "most": most})
    # layer: auto (the best on the first `choose_images` of the validation split) | a number, from 0 or from the last -1
    config.evals = ConfigDict({"grounding": {"name": here, "during": False, "layer": "auto"}})


class Found(NamedTuple):
    """Of each example: whether it has boxes to choose from, whether the chosen one is right, whether the warmest patch
    is; the shares of the boxes that are right, and of the patches; whether the largest box is right."""

    chosen_I: np.ndarray
    right_I: np.ndarray
    pointed_I: np.ndarray
    chance_I: np.ndarray
    pointing_chance_I: np.ndarray
    largest_I: np.ndarray

    def metrics(self) -> dict[str, float]:
        """In percent; an example without boxes to choose from is wrong where others have some."""
        values = {}
        if self.chosen_I.any():
            values |= {
                "grounding_accuracy": self.right_I,
                "grounding_chance": self.chance_I,  # of a box at random
                "grounding_largest": self.largest_I,  # of the largest box: heat that is the same everywhere chooses it
            }
        values |= {"grounding_pointing": self.pointed_I, "grounding_pointing_chance": self.pointing_chance_I}
        return {name: 100.0 * float(np.mean(value)) for name, value in values.items()}


class Evaluator(base.Evaluator):
    """Shares of the expressions whose box is found, in percent."""

    place = 3
    best = ("grounding_accuracy", "grounding_pointing")

    def __init__(self, run: ScoredRun, options: Mapping[str, Any]):
        super().__init__(run, options)
        self._layers = heats.layers_of(run.config, run.objectives)
        self._choose, self._chosen_on = options.get("layer", "auto") == "auto", None
        self._layer = self._layers.default if self._choose else _layer(options["layer"], self._layers)

    @classmethod
    def metrics(cls, objectives: Mapping[str, type]) -> tuple[str, ...]:
        return cls.best if objective_of(objectives, ScoresPairs) or objective_of(objectives, TrainsEmbeddings) else ()

    def prepare(self, predictor: Predictor) -> None:
        """Chooses the layer, if it is not given and the split that it is chosen on is not scored itself."""
        options = self.options
        split = options["validation_split"]
        scored = split in (options["split"], *options["extra_splits"])
        if not self._choose or self._layers.count == 1 or scored:
            return
        try:
            data = self.run.data(split)
        except UserError as error:
            print(f"heat is taken of layer {self._layer}, as the split {split} cannot be read: {error}")
            return
        data = data.first(min(options["choose_images"] or len(data.images), len(data.images)))
        values = [self.found(predictor, data, layer).metrics() for layer in range(self._layers.count)]
        name = next(name for name in self.best if name in values[0])
        scores = [one[name] for one in values]
        self._layer = int(np.argmax(scores))
        self._chosen_on = {"split": split, "images": len(data.images), name: scores}

    def evaluate(self, predictor: Predictor, split: str, *, final: bool) -> Iterator[tuple[str, float]]:
        yield from self.found(predictor, self.run.data(split), self._layer).metrics().items()

    def found(self, predictor: Predictor, data: EvaluationSet, layer: int) -> Found:
        """What the heat of a layer finds in a set."""
        if f"{FIELD}_true" not in data.of_picture:
            raise UserError(f"grounding reads boxes of each example; give data.fields.{FIELD}")
        rows, size = [], self.options["batch_size"]
        for start in range(0, len(data.images), size):
            pictures, valid = padded(np.arange(start, min(start + size, len(data.images))), size)
            batch: dict[str, Any] = data.batch(pictures, data.first_captions[pictures], valid)
            heat_BN = predictor.fetch(heats.heat_of(layer), batch).text_BN
            of_boxes = [batch[f"{FIELD}_{name}"] for name in ("size", "true", "candidates", "count")]
            for i in np.flatnonzero(valid):
                image_size, true, candidates, count = (array[i] for array in of_boxes)
                rows.append((count > 0, *_judged(heat_BN[i], image_size, true, candidates[:count])))
        return Found(*(np.array(column) for column in zip(*rows, strict=True)))

    def figures(self, predictor: Predictor, split: str) -> base.Figures:
        data, size = self.run.data(split), self.options["batch_size"]
        count = min(self.options["figures"], size, len(data.images))
        if not count:
            return base.Figures({}, {})
        pictures, valid = padded(np.arange(count), size)
        batch: dict[str, Any] = data.batch(pictures, data.first_captions[pictures], valid)
        found, rows = predictor.fetch(heats.heat_of(self._layer), batch), []
        for i in range(count):
            text = data.captions[data.first_captions[i]]
            words, word_WN = heats.of_words(self.run.tokenizer, text, found.word_BLN[i])
            words = words if word_WN.any() else []
            box = batch[f"{FIELD}_true"][i]
            rows.append(heat_sheet.Shown(batch["image"][i], text, words, found.text_BN[i], word_WN, box))
        return base.Figures({"heat": heat_sheet.sheet(rows)}, {})

    def protocol(self, split: str) -> dict[str, Any]:
        layers = {"layer": self._layer, "of_layers": self._layers.count, "heat_of": self._layers.score}
        return {"grounding": layers | ({"layer_chosen_on": self._chosen_on} if self._chosen_on else {})}


def _layer(option: str | int, layers: heats.Layers) -> int:
    try:
        return layers.number(int(option))
    except ValueError:
        raise UserError(f"layer of grounding is {option!r}; give auto or a number") from None


def _judged(
    heat_N: np.ndarray, size: np.ndarray, true: np.ndarray, candidates_M4: np.ndarray
) -> tuple[bool, bool, float, float, bool]:
    """Of an example, what follows the first of `Found`; boxes are shares of the picture."""
    # Not the warmest pixel: between few patches resizing draws it into the picture's corners.
    inside_N, warmest = middles_inside(true, round(len(heat_N) ** 0.5)), np.argmax(heat_N)
    pointed, share = bool(inside_N[warmest] and heat_N[warmest] > 0), float(inside_N.mean())
    if not len(candidates_M4):
        return False, pointed, 0.0, share, False
    height, width = size.tolist()
    box, boxes_M4 = (x * np.array([width, height, width, height], float) for x in (true, candidates_M4))
    right_M, scores_M = overlap(boxes_M4, box) >= 0.5, box_scores(heats.resized(heat_N, height, width), boxes_M4)
    best, largest = np.argmax(scores_M), np.argmax(_area(boxes_M4))
    return right_M[best] and scores_M[best] > 0, pointed, float(right_M.mean()), share, right_M[largest]


def middles_inside(box: np.ndarray, side: int) -> np.ndarray:
    """(side * side,) bool: which patches, row by row, have their middle in a box of shares."""
    x, y = np.meshgrid((np.arange(side) + 0.5) / side, (np.arange(side) + 0.5) / side)
    return ((box[0] <= x) & (x < box[2]) & (box[1] <= y) & (y < box[3])).reshape(-1)


def box_scores(heat_YX: np.ndarray, boxes_M4: np.ndarray) -> np.ndarray:
    """(M,): the sum of heat in each box over the root of its area; boxes in pixels, of which whole ones count."""
    height, width = heat_YX.shape
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = heat_YX.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    # Shares were rounded to float32: what was a whole number is one again.
    edges_M4 = np.clip(np.floor(boxes_M4 + 1e-3).astype(int), 0, [width, height, width, height])
    x0, y0, x1, y1 = edges_M4.T
    return (sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]) / np.sqrt(_area(boxes_M4))


def overlap(boxes_M4: np.ndarray, box: np.ndarray) -> np.ndarray:
    """(M,): the intersection of each box with another over their union."""
    sides_M2 = np.minimum(boxes_M4[:, 2:], box[2:]) - np.maximum(boxes_M4[:, :2], box[:2])
    common_M = np.prod(np.maximum(sides_M2, 0), axis=1)
    return common_M / (_area(boxes_M4) + _area(box) - common_M)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
