"""Cross-modal probes: masked losses with the matched, a wrong and no other modality (MLIM, arXiv 2109.12178, Sec. 4).

What a model has learned of one modality from the other is the gap between "matched" and "shuffled". "empty" is a
picture of the mean colour, or a caption without a word.
"""

from collections.abc import Iterator

import numpy as np

from maskvlm_jax.data import batch as batches_of
from maskvlm_jax.data import transforms
from maskvlm_jax.data.evaluation import EvaluationSet, padded
from maskvlm_jax.evaluators.predictor import Predictor

OTHERS = ("matched", "shuffled", "empty")


def evaluate(predictor: Predictor, data: EvaluationSet, *, batch_size: int, limit: int) -> Iterator[tuple[str, float]]:
    """masked_text_{loss, accuracy}_OTHER (nats, percent), masked_image_{loss, psnr}_OTHER (L1, decibel) and
    masked_feature_cosine_OTHER, of the objectives that were trained.

    Features are held against those of the evaluated model itself, not of the moving average that training reads: a
    collapsed encoder would score 1, so the gap between "matched" and "shuffled" is what counts.
    """
    pictures = np.arange(len(data.images))[: limit or None]
    for other in OTHERS:
        if "masked_text" in predictor.objectives:
            yield from zip(
                (f"masked_text_loss_{other}", f"masked_text_accuracy_{other}"),
                masked_text_scores(predictor, batches(data, pictures, batch_size, of="text", reads=other)),
                strict=True,
            )
        if "masked_image" in predictor.objectives:
            yield from zip(
                (f"masked_image_loss_{other}", f"masked_image_psnr_{other}"),
                masked_image_scores(predictor, batches(data, pictures, batch_size, of="image", reads=other)),
                strict=True,
            )

        if "masked_feature" in predictor.objectives:
            source = batches(data, pictures, batch_size, of="image", reads=other)
            yield f"masked_feature_cosine_{other}", masked_feature_cosine(predictor, source)


def batches(
    data: EvaluationSet, pictures: np.ndarray, batch_size: int, *, of: str, reads: str
) -> Iterator[dict[str, np.ndarray]]:
    """Padded batches of pictures with their first caption.

    Args:
        of: the modality that is rebuilt, "image" or "text".
        reads: what it comes with: the "matched" other modality, a "shuffled" or an "empty" one.
    """
    others, first = data.other_pictures(), data.first_captions
    for start in range(0, len(pictures), batch_size):
        chosen, valid = padded(pictures[start : start + batch_size], batch_size)
        seen = read = chosen
        if reads == "shuffled":
            seen, read = (others[chosen], chosen) if of == "text" else (chosen, others[chosen])
        batch = data.batch(seen, first[read], valid)
        if data.one_at_a_time and of == "text":
            batch["image_masked"] = np.zeros_like(batch["image_masked"])
        if data.one_at_a_time and of == "image":
            batch |= {"tokens_masked": batch["tokens"], "text_masked": np.zeros_like(batch["text_masked"])}
        if reads == "empty":
            blank = {"image": batches_of.without_picture(batch["image"])}
            batch |= blank if of == "text" else batches_of.without_words(batch)
        yield batch


def masked_text_scores(predictor: Predictor, source: Iterator[dict[str, np.ndarray]]) -> tuple[float, float]:
    """Mean negative log-likelihood (nats) and accuracy (percent) over all masked tokens."""
    nll, correct = [], []
    for batch in source:
        nll_BM, predicted_BM, target_BM, positions = predictor.masked_text(batch)
        counted_BM = positions.valid_BM & batch["example_valid"][:, None]
        nll.append(nll_BM[counted_BM])
        correct.append((predicted_BM == target_BM)[counted_BM])
    return float(np.mean(np.concatenate(nll), dtype=np.float64)), 100.0 * float(np.mean(np.concatenate(correct)))


def masked_image_scores(predictor: Predictor, source: Iterator[dict[str, np.ndarray]]) -> tuple[float, float]:
    """Mean absolute error of normalised pixels and PSNR in decibel of 8-bit ones, both over all masked pixels."""
    absolute, squared, count = 0.0, 0.0, 0
    for batch in source:
        pred_BMF, target_BMF, _ = predictor.masked_image(batch)
        valid = batch["example_valid"]
        pred, target = pred_BMF[valid], target_BMF[valid]
        absolute += float(np.sum(np.abs(pred - target), dtype=np.float64))
        squared += float(np.sum((_pixels(pred) - _pixels(target)) ** 2, dtype=np.float64))
        count += target.size
    return absolute / count, 10.0 * float(np.log10(255.0**2 / max(squared / count, 1e-12)))


def masked_feature_cosine(predictor: Predictor, source: Iterator[dict[str, np.ndarray]]) -> float:
    """Mean cosine of predicted with true features of masked patches."""
    cosines = []
    for batch in source:
        pred_BMD, target_BMD, _ = predictor.masked_feature(batch)
        cosines.append(np.sum(pred_BMD * target_BMD, axis=-1)[batch["example_valid"]].ravel())
    return float(np.mean(np.concatenate(cosines), dtype=np.float64))


def _pixels(patches: np.ndarray) -> np.ndarray:
    """Normalised patch values (..., F) to 8-bit pixel values (..., 3), as floats."""
    return transforms.denormalise(patches.reshape(*patches.shape[:-1], -1, 3)).astype(np.float64)
