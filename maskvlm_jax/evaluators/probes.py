"""Cross-modal probes: masked losses with the matched, a wrong and no other modality (MLIM, arXiv 2109.12178, Sec. 4).

What a model has learned of one modality from the other is the gap between "matched" and "shuffled". "empty" is a
picture of the mean colour, or a caption without a word.
"""

from collections.abc import Iterator

import numpy as np

from maskvlm_jax.data import transforms
from maskvlm_jax.data.evaluation import EvaluationSet, padded
from maskvlm_jax.evaluators.predictor import Predictor

OTHERS = ("matched", "shuffled", "empty")


def evaluate(predictor: Predictor, data: EvaluationSet, *, batch_size: int, limit: int) -> Iterator[tuple[str, float]]:
    """masked_text_{loss, accuracy}_OTHER (nats, percent) and masked_image_{loss, psnr}_OTHER (L1, decibel)."""
    pictures = np.arange(len(data.images))[:limit]
    for other in OTHERS:
        if "masked_text" in predictor.objectives:
            yield from zip(
                (f"masked_text_loss_{other}", f"masked_text_accuracy_{other}"),
                masked_text_scores(predictor, batches(data, pictures, batch_size, text_reads=other)),
                strict=True,
            )
        if "masked_image" in predictor.objectives:
            yield from zip(
                (f"masked_image_loss_{other}", f"masked_image_psnr_{other}"),
                masked_image_scores(predictor, batches(data, pictures, batch_size, image_reads=other)),
                strict=True,
            )


def batches(
    data: EvaluationSet,
    pictures: np.ndarray,
    batch_size: int,
    *,
    text_reads: str = "matched",
    image_reads: str = "matched",
) -> Iterator[dict[str, np.ndarray]]:
    """Padded batches of pictures with their first caption.

    Args:
        text_reads: which picture the captions come with; image_reads: which caption the pictures come with.
    """
    others, first = data.other_pictures(), data.first_captions
    for start in range(0, len(pictures), batch_size):
        chosen, valid = padded(pictures[start : start + batch_size], batch_size)
        seen = others[chosen] if text_reads == "shuffled" else chosen
        read = others[chosen] if image_reads == "shuffled" else chosen
        batch = data.batch(seen, first[read], valid)
        if text_reads == "empty":
            batch["image"] = np.zeros_like(batch["image"])
        if image_reads == "empty":
            batch |= without_words(batch)
        yield batch


def without_words(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The text arrays of a caption that holds nothing between its start and end token."""
    tokens, valid = batch["tokens"], batch["token_valid"]
    rows, last = np.arange(len(tokens)), valid.sum(axis=1) - 1
    empty = tokens.copy()
    empty[:, 1] = tokens[rows, last]
    return {"tokens": empty, "token_valid": np.broadcast_to(np.arange(tokens.shape[1]) < 2, tokens.shape).copy()}


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


def _pixels(patches: np.ndarray) -> np.ndarray:
    """Normalised patch values (..., F) to 8-bit pixel values (..., 3), as floats."""
    return transforms.denormalise(patches.reshape(*patches.shape[:-1], -1, 3)).astype(np.float64)
