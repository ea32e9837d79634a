"""How well masked patches are predicted from the visible ones, where a model reads no text (FastMIM, arXiv 2212.06593).

masked_patches_loss         mean squared error over masked patches and their values
masked_patches_explained    percent of the variance of the targets: 0 is the best constant guess, 100 the targets
masked_patches_cosine       percent, mean cosine of predicted histograms with true ones, weighted by the length of these

The figure shows the histograms as strokes along the edges that they tell of.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskvlm_jax.data import transforms
from maskvlm_jax.data.evaluation_set import EvaluationSet, padded
from maskvlm_jax.evaluators import base
from maskvlm_jax.evaluators.figures import GAP, HEADER, MASK_GREY, TILE, paste
from maskvlm_jax.evaluators.predictor import Predictor
from maskvlm_jax.objectives.base import PredictsPatches, objective_of
from maskvlm_jax.objectives.hog import BINS
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime.sheets import INK, PAPER

TITLES = ("original", "masked", "what is told of it", "predicted")
STROKES = 480  # pixels of a side of a tile of strokes before it is made small


class Evaluator(base.Evaluator):
    """Reads `probe_limit` pictures, and draws `figures` of them; 0 = none."""

    place = 2
    best = ("masked_patches_explained",)

    @classmethod
    def metrics(cls, objectives: Mapping[str, type]) -> tuple[str, ...]:
        names = ("loss", "explained", "cosine") if objective_of(objectives, PredictsPatches) else ()
        return tuple(f"masked_patches_{name}" for name in names)

    def evaluate(self, predictor: Predictor, split: str, *, final: bool) -> Iterator[tuple[str, float]]:
        if predictor.offers(PredictsPatches):
            data, options = self.run.data(split), self.options
            yield from scores(predictor, data, limit=options["probe_limit"], batch_size=options["batch_size"])

    def figures(self, predictor: Predictor, split: str) -> base.Figures:
        size, data = self.options["batch_size"], self.run.data(split)
        count = min(self.options["figures"], size, len(data.images))
        if not count or not predictor.offers(PredictsPatches):
            return base.Figures({}, {})
        return base.Figures({"masked_patches": sheet(predictor, data, count=count, batch_size=size)}, {})

    def protocol(self, split: str) -> dict[str, Any]:
        images = len(self.run.data(split).images)
        return {"probe_images": min(self.options["probe_limit"] or images, images)}


def sums(learner: Learner, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """What the scores of a batch are made of, by example: sums over masked patches M and their values F.

    error_B: Σ (prediction − target)²; values_BF, squares_BF: Σ over M of targets and of their squares; cosine_B,
    length_B: Σ of the cosines of histograms, times their lengths, and of the lengths.
    """
    ctx, objective = learner.context(batch), learner.offering(PredictsPatches)
    (pred_BMF, _), target_BMF = objective.predict(ctx), objective.target(ctx)
    found = {
        "error_B": jnp.sum(jnp.square(pred_BMF - target_BMF), axis=(1, 2)),
        "values_BF": jnp.sum(target_BMF, axis=1),
        "squares_BF": jnp.sum(jnp.square(target_BMF), axis=1),
    }
    if objective.bins:
        pred, target = (x.reshape(len(x), -1, objective.bins) for x in (pred_BMF, target_BMF))
        product_BR = jnp.sum(pred * target, axis=-1)
        found["cosine_B"] = jnp.sum(product_BR / jnp.maximum(jnp.linalg.norm(pred, axis=-1), 1e-12), axis=1)
        found["length_B"] = jnp.sum(jnp.linalg.norm(target, axis=-1), axis=1)
    return found


def predictions(learner: Learner, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """pred_BMF, target_BMF, and which patches they are of, ids_BM."""
    ctx, objective = learner.context(batch), learner.offering(PredictsPatches)
    pred_BMF, positions = objective.predict(ctx)
    return pred_BMF, objective.target(ctx), positions.ids_BM


def scores(predictor: Predictor, data: EvaluationSet, *, limit: int, batch_size: int) -> Iterator[tuple[str, float]]:
    """The metrics of the first `limit` pictures, 0 = all."""
    total: dict[str, Any] = {}
    count, end = 0, min(limit or len(data.images), len(data.images))
    for start in range(0, end, batch_size):
        batch, valid = _batch(data, np.arange(start, min(start + batch_size, end)), batch_size)
        for name, value in predictor.fetch(sums, batch).items():
            total[name] = total.get(name, 0.0) + np.sum(value[valid], axis=0, dtype=np.float64)
        count += int(valid.sum()) * int(batch["image_masked"][0].sum())
    squares_F = total["squares_BF"] - total["values_BF"] ** 2 / count  # around the mean of each value
    yield "masked_patches_loss", float(total["error_B"] / (count * len(squares_F)))
    yield "masked_patches_explained", float(100 * (1 - total["error_B"] / max(squares_F.sum(), 1e-12)))
    if "cosine_B" in total:
        yield "masked_patches_cosine", float(100 * total["cosine_B"] / max(total["length_B"], 1e-12))


def _batch(data: EvaluationSet, ids: np.ndarray, size: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A padded batch of pictures with their first captions, and which of its examples are real."""
    pictures, valid = padded(ids, size)
    return data.batch(pictures, data.first_captions[pictures], valid), valid


# --- the figure ------------------------------------------------------------------------------------------------------


def sheet(predictor: Predictor, data: EvaluationSet, *, count: int, batch_size: int) -> np.ndarray:
    """One row a picture: original | masked | targets of the masked patches | predictions of them."""
    batch, _ = _batch(data, np.arange(count), batch_size)
    pred_BMF, target_BMF, ids_BM = predictor.fetch(predictions, batch)
    drawn = Image.new("RGB", (GAP + len(TITLES) * (TILE + GAP), HEADER + count * (TILE + GAP)), PAPER)
    draw, font = ImageDraw.Draw(drawn), ImageFont.load_default(14)
    for column, title in enumerate(TITLES):
        draw.text((GAP + column * (TILE + GAP), 4), title, INK, font)
    for row in range(count):
        image, ids_M, grid = data.images[row], ids_BM[row], round(batch["image_masked"].shape[1] ** 0.5)
        patch = image.shape[0] // grid
        masked = paste(image, np.full((len(ids_M), patch, patch, 3), MASK_GREY, np.uint8), ids_M)
        tiles = [image, masked, *(_told(masked, values[row], ids_M, patch) for values in (target_BMF, pred_BMF))]
        for column, tile in enumerate(tiles):
            way = Image.Resampling.NEAREST if len(tile) < TILE else Image.Resampling.BILINEAR
            small = Image.fromarray(tile).resize((TILE, TILE), way)
            drawn.paste(small, (GAP + column * (TILE + GAP), HEADER + row * (TILE + GAP)))
    return np.asarray(drawn)


def _told(masked: np.ndarray, value_MF: np.ndarray, ids_M: np.ndarray, patch: int) -> np.ndarray:
    """The picture with values of its masked patches: pixels in their places, histograms as strokes."""
    if value_MF.shape[1] == 3 * patch**2:
        return paste(masked, transforms.denormalise(value_MF.reshape(-1, patch, patch, 3)), ids_M)
    size = STROKES // (len(masked) // patch)  # of a patch
    tile = masked.repeat(-(-size // patch), axis=0).repeat(-(-size // patch), axis=1)
    return paste(tile, strokes(value_MF, tile.shape[0] // (len(masked) // patch)), ids_M)


def strokes(value_MF: np.ndarray, size: int) -> np.ndarray:
    """(M, size, size, 3) uint8: a stroke along the edge for each bin of each cell, the brighter the more it has."""
    side = round((value_MF.shape[1] / (3 * BINS)) ** 0.5)
    cell_MRCO = value_MF.reshape(-1, side, side, 3, BINS).mean(axis=3)
    found, half = [], size / side / 2
    for cell_RCO in cell_MRCO:
        picture = Image.new("L", (size, size))
        draw = ImageDraw.Draw(picture)
        for row, column, bin in sorted(np.ndindex(cell_RCO.shape), key=lambda place: cell_RCO[place]):  # brightest last
            angle, y, x = np.pi * (bin + 0.5) / BINS, (2 * row + 1) * half, (2 * column + 1) * half
            dx, dy = 0.9 * half * np.cos(angle), -0.9 * half * np.sin(angle)  # across (sin, cos), the gradient
            brightness = round(255 * float(np.clip(cell_RCO[row, column, bin], 0, 1)))
            draw.line((x - dx, y - dy, x + dx, y + dy), brightness, max(1, round(half / 8)))
        found.append(np.asarray(picture))
    return np.stack(found)[..., None].repeat(3, axis=-1)
