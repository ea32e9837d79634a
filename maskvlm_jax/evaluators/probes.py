"""Cross-modal probes: masked losses with the matched, a wrong and no other modality (MLIM, arXiv 2109.12178, Sec. 4).

What a model has learned of one modality from the other is the gain of "matched" over "shuffled", whose 95 % interval
is told. "empty" is a picture of the mean colour, or a caption without a word. `baselines` has what one modality alone
gives without a network.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maskvlm_jax.data import batch as batches_of
from maskvlm_jax.data import transforms
from maskvlm_jax.data.evaluation_set import EvaluationSet, padded
from maskvlm_jax.evaluators import base, baselines
from maskvlm_jax.evaluators.predictor import Predictor
from maskvlm_jax.models.layers import Positions
from maskvlm_jax.objectives.base import PredictsFeatures, PredictsPixels, PredictsWords, objective_of
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.objectives.masked_image import masked_patch_target
from maskvlm_jax.runtime.errors import UserError

OTHERS = ("matched", "shuffled", "empty")
RESAMPLES = 1_000
BLEND_BLOCK = 64  # pictures whose pixels are held as floats at a time
NEIGHBOUR_PICTURES = 10_000  # training pictures whose captions the baseline of masked words is fitted to

METRICS = {
    PredictsWords: (
        *(f"masked_text_{kind}_{reads}" for kind in ("loss", "accuracy") for reads in OTHERS),
        *(f"masked_text_accuracy_{name}" for name in ("gain", "gain_low", "gain_high", "neighbours")),
    ),
    PredictsPixels: (
        *(f"masked_image_{kind}_{reads}" for kind in ("loss", "psnr") for reads in OTHERS),
        *(f"masked_image_psnr_{name}" for name in ("gain", "gain_low", "gain_high", "blend")),
    ),
    PredictsFeatures: tuple(f"masked_feature_cosine_{reads}" for reads in OTHERS),
}


class Evaluator(base.Evaluator):
    """Masked predictions with the matched, a wrong and no other modality; reads `probe_limit` pictures."""

    place = 2
    best = ("masked_text_accuracy_matched", "masked_image_psnr_matched", "masked_feature_cosine_matched")
    _neighbours: baselines.NeighbourWords | None = None

    @classmethod
    def metrics(cls, objectives: Mapping[str, type]) -> tuple[str, ...]:
        return tuple(name for role, names in METRICS.items() if objective_of(objectives, role) for name in names)

    def evaluate(self, predictor: Predictor, split: str, *, final: bool) -> Iterator[tuple[str, float]]:
        sizes = {"batch_size": self.options["batch_size"], "limit": self.options["probe_limit"]}
        return evaluate(predictor, self.run.data(split), **sizes, neighbours=self.neighbour_words)

    def neighbour_words(self) -> baselines.NeighbourWords | None:
        """Fitted to the captions that the run was trained on; None, with a line, if they are not there."""
        if self._neighbours is None:
            tokenizer, length = self.run.tokenizer, self.run.config.model.text.max_length
            try:
                captions = self.run.training_captions(NEIGHBOUR_PICTURES)
            except UserError as error:
                print(f"masked_text_accuracy_neighbours is left out, no training captions: {error}")
                return None
            encoded = [tokenizer.encode(caption, length) for caption in captions]
            tokens_TL, _, valid_TL = (np.stack(arrays) for arrays in zip(*encoded, strict=True))
            self._neighbours = baselines.NeighbourWords(tokens_TL, valid_TL, tokenizer.vocab_size)
        return self._neighbours

    def protocol(self, split: str) -> dict[str, int]:
        images = len(self.run.data(split).images)
        return {"probe_images": min(self.options["probe_limit"] or images, images)}


def evaluate(
    predictor: Predictor,
    data: EvaluationSet,
    *,
    batch_size: int,
    limit: int,
    neighbours: Callable[[], baselines.NeighbourWords | None] = lambda: None,
) -> Iterator[tuple[str, float]]:
    """masked_text_{loss, accuracy}_OTHER (nats, percent), masked_image_{loss, psnr}_OTHER (L1, decibel) and
    masked_feature_cosine_OTHER, of the objectives that were trained; masked_text_accuracy_gain and
    masked_image_psnr_gain, matched minus shuffled, with the `_low` and `_high` end of its 95 % interval; and
    masked_text_accuracy_neighbours, masked_image_psnr_blend of the baselines.

    Features are held against those of the evaluated model itself, not of the moving average that training reads: a
    collapsed encoder would score 1, so the gap between "matched" and "shuffled" is what counts.

    Args:
        limit: pictures that are read, each with all its captions; 0 = all.
        neighbours: makes the baseline of masked words; None where its training captions are not there.
    """
    texts = np.flatnonzero(data.image_of_caption < (limit or len(data.images)))
    pictures = data.image_of_caption[texts]
    read = lambda reads: batches(data, texts, batch_size, of="image", reads=reads)  # noqa: E731
    others = OTHERS if len(set(pictures)) > 1 else tuple(reads for reads in OTHERS if reads != "shuffled")
    if predictor.offers(PredictsWords):
        scores = {
            reads: masked_text_scores(predictor, encoded_once(predictor, data, texts, batch_size, reads))
            for reads in others
        }
        yield from _compared("masked_text", "accuracy", scores, pictures)
        if (words := neighbours()) is not None:
            yield "masked_text_accuracy_neighbours", words.accuracy(data.text, texts)
    if predictor.offers(PredictsPixels):
        scores = {reads: masked_image_scores(predictor, read(reads)) for reads in others}
        yield from _compared("masked_image", "psnr", scores, pictures)
        yield "masked_image_psnr_blend", blend_psnr(data, pictures)
    if predictor.offers(PredictsFeatures):
        for reads in others:
            yield f"masked_feature_cosine_{reads}", masked_feature_cosine(predictor, read(reads))


def _compared(name: str, metric: str, scores: dict[str, "Scores"], pictures: np.ndarray) -> Iterator[tuple[str, float]]:
    """Loss and metric with each of `OTHERS`, and what the matched one gains; one picture has no wrong one beside it."""
    for reads, found in scores.items():
        yield f"{name}_loss_{reads}", found.loss
        yield f"{name}_{metric}_{reads}", found.score()
    if "shuffled" in scores:
        yield from gain(f"{name}_{metric}_gain", scores["matched"], scores["shuffled"], pictures)


class Scores(NamedTuple):
    """Sums over the masked tokens or pixel values of each example, whose ratio is scored.

    loss: mean over all of them; sum_T, count_T: of what `rate` reads; rate: pooled mean -> score.
    """

    loss: float
    sum_T: np.ndarray
    count_T: np.ndarray
    rate: Callable[[np.ndarray], np.ndarray]

    def score(self) -> float:
        """Over all examples."""
        return float(self.rate(self.sum_T.sum() / self.count_T.sum()))


def percent(mean: np.ndarray) -> np.ndarray:
    return 100.0 * mean


def psnr(squared: np.ndarray) -> np.ndarray:
    """Decibel, from the mean squared error of 8-bit values."""
    return 10.0 * np.log10(255.0**2 / np.maximum(squared, 1e-12))


def gain(name: str, right: Scores, wrong: Scores, pictures: np.ndarray) -> Iterator[tuple[str, float]]:
    """The difference of two scores of the same examples, and its 95 % interval.

    Pictures are resampled whole (Efron's bootstrap), always the same way: captions of one picture go together, and both
    scores keep their common difficulty.
    """
    sums_I4 = np.zeros((pictures.max() + 1, 4))
    for column, values in enumerate((right.sum_T, right.count_T, wrong.sum_T, wrong.count_T)):
        np.add.at(sums_I4[:, column], pictures, values)
    there = len(sums_I4)
    drawn = np.random.default_rng(0).multinomial(there, np.full(there, 1 / there), RESAMPLES) @ sums_I4
    drawn = drawn[(drawn[:, 1] > 0) & (drawn[:, 3] > 0)]
    differences = right.rate(drawn[:, 0] / drawn[:, 1]) - wrong.rate(drawn[:, 2] / drawn[:, 3])
    low, high = np.percentile(differences, (2.5, 97.5))
    yield from ((name, right.score() - wrong.score()), (f"{name}_low", float(low)), (f"{name}_high", float(high)))


def batches(
    data: EvaluationSet, texts: np.ndarray, batch_size: int, *, of: str, reads: str
) -> Iterator[dict[str, np.ndarray]]:
    """Padded batches of captions with their pictures.

    Args:
        of: the modality that is rebuilt, "image" or "text".
        reads: what it comes with: the "matched" other modality, a "shuffled" or an "empty" one.
    """
    others, first = data.other_pictures(), data.first_captions
    for start in range(0, len(texts), batch_size):
        read, valid = padded(texts[start : start + batch_size], batch_size)
        seen = data.image_of_caption[read]
        if reads == "shuffled":
            seen, read = (others[seen], read) if of == "text" else (seen, first[others[seen]])
        batch = data.batch(seen, read, valid)
        if data.one_at_a_time and of == "text":
            batch["image_masked"] = np.zeros_like(batch["image_masked"])
        if data.one_at_a_time and of == "image":
            batch |= {"tokens_masked": batch["tokens"], "text_masked": np.zeros_like(batch["text_masked"])}
        if reads == "empty":
            blank = {"image": batches_of.without_picture(batch["image"])}
            batch |= blank if of == "text" else batches_of.without_words(batch)
        yield batch


def encoded_once(
    predictor: Predictor, data: EvaluationSet, texts: np.ndarray, batch_size: int, reads: str
) -> Iterator[dict[str, np.ndarray]]:
    """`batches` of captions, of="text", with the features of their pictures: each is encoded once for all its captions.

    Args:
        texts: in the order of their pictures.
    """
    pictures, others = data.image_of_caption[texts], data.other_pictures()
    ids = np.unique(pictures)
    for start in range(0, len(ids), batch_size):
        block, _ = padded(ids[start : start + batch_size], batch_size)
        image = data.images[others[block] if reads == "shuffled" else block]
        image_BSD, _ = predictor.encode_image(batches_of.without_picture(image) if reads == "empty" else image)
        own = texts[np.isin(pictures, block)]
        places = np.searchsorted(ids[start : start + batch_size], data.image_of_caption[own])
        for n, batch in enumerate(batches(data, own, batch_size, of="text", reads=reads)):
            chosen, _ = padded(places[n * batch_size : (n + 1) * batch_size], batch_size)
            yield {**batch, batches_of.FEATURES: image_BSD[chosen]}


def masked_text(learner: Learner, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array, Positions]:
    """nll_BM, predicted ids_BM, target ids_BM and the positions, of masked words."""
    logits_BMV, positions = learner.offering(PredictsWords).predict(learner.context(batch))
    target_BM = jnp.take_along_axis(batch["tokens"], positions.ids_BM, axis=1)
    nll_BM = optax.softmax_cross_entropy_with_integer_labels(logits_BMV.astype(jnp.float32), target_BM)
    return nll_BM, jnp.argmax(logits_BMV, axis=-1), target_BM, positions


def masked_image(learner: Learner, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array, Positions]:
    """pred_BMF, target_BMF in normalised pixels, and the positions, of masked patches."""
    ctx = learner.context(batch)
    pred_BMF, positions = learner.offering(PredictsPixels).predict(ctx)
    patch = learner.vlm.image_encoder.patch
    return pred_BMF, masked_patch_target(ctx.pixels_BYXC, positions.ids_BM, patch), positions


def masked_feature(learner: Learner, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array, Positions]:
    """pred_BMD and target_BMD, features of unit length, and the positions, of masked patches."""
    # The weights that are evaluated give the targets, whichever they are.
    ctx = learner.context(batch, teacher=learner.context(batch))
    return *learner.offering(PredictsFeatures).predict(ctx), ctx.masked_patches


def masked_text_scores(predictor: Predictor, source: Iterator[dict[str, np.ndarray]]) -> Scores:
    """Negative log-likelihood (nats) and accuracy (percent) of masked tokens."""
    nll, correct, count = 0.0, [], []
    for batch in source:
        nll_BM, predicted_BM, target_BM, positions = predictor.fetch(masked_text, batch)
        counted_BM = positions.valid_BM & batch["example_valid"][:, None]
        nll += float(np.sum(nll_BM[counted_BM], dtype=np.float64))
        correct.append(np.sum((predicted_BM == target_BM) & counted_BM, axis=1)[batch["example_valid"]])
        count.append(np.sum(counted_BM, axis=1)[batch["example_valid"]])
    count_T = np.concatenate(count)
    return Scores(nll / max(count_T.sum(), 1), np.concatenate(correct), count_T, percent)


def masked_image_scores(predictor: Predictor, source: Iterator[dict[str, np.ndarray]]) -> Scores:
    """Mean absolute error of normalised pixels, and PSNR in decibel of 8-bit ones, of masked patches."""
    absolute, squared, count = 0.0, [], []
    for batch in source:
        pred_BMF, target_BMF, _ = predictor.fetch(masked_image, batch)
        valid = batch["example_valid"]
        pred, target = pred_BMF[valid], target_BMF[valid]
        absolute += float(np.sum(np.abs(pred - target), dtype=np.float64))
        squared.append(np.sum((_pixels(pred) - _pixels(target)) ** 2, axis=(1, 2, 3)))
        count.append(np.full(len(pred), pred[0].size))
    count_T = np.concatenate(count)
    return Scores(absolute / count_T.sum(), np.concatenate(squared), count_T, psnr)


def blend_psnr(data: EvaluationSet, pictures: np.ndarray) -> float:
    """PSNR in decibel of the blend of visible patches, of the pictures' masked patches, once for every caption."""
    squared, count = 0.0, 0
    ids, captions = np.unique(pictures, return_counts=True)
    for start in range(0, len(ids), BLEND_BLOCK):
        chosen, times = ids[start : start + BLEND_BLOCK], captions[start : start + BLEND_BLOCK]
        colour_BM3, target_BMF3 = baselines.blended_patches(data.images[chosen], data.image_masked[chosen])
        error_B = np.sum((np.rint(colour_BM3)[:, :, None] - target_BMF3) ** 2, axis=(1, 2, 3))
        squared += float(error_B @ times)
        count += int(times.sum()) * target_BMF3[0].size
    return float(psnr(squared / count))


def masked_feature_cosine(predictor: Predictor, source: Iterator[dict[str, np.ndarray]]) -> float:
    """Mean cosine of predicted with true features of masked patches."""
    cosines = []
    for batch in source:
        pred_BMD, target_BMD, _ = predictor.fetch(masked_feature, batch)
        cosines.append(np.sum(pred_BMD * target_BMD, axis=-1)[batch["example_valid"]].ravel())
    return float(np.mean(np.concatenate(cosines), dtype=np.float64))


def _pixels(patches: np.ndarray) -> np.ndarray:
    """Normalised patch values (..., F) to 8-bit pixel values (..., 3), as floats."""
    return transforms.denormalise(patches.reshape(*patches.shape[:-1], -1, 3)).astype(np.float64)
