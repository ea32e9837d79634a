"""Whether the matching head knows anything: matched pairs against pairs drawn at random.

Its training loss cannot tell. Against negatives drawn from the contrastive model's own similarity, a head that knows
all that the contrastive loss knows has the loss of a constant answer (`objectives.matching`); against random pairs it
has a large area under the ROC curve, and one that knows nothing has 50 %.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from maskvlm_jax.data.evaluation_set import EvaluationSet
from maskvlm_jax.evaluators import base, encoding
from maskvlm_jax.evaluators.predictor import Predictor
from maskvlm_jax.objectives.base import ScoresPairs, objective_of

METRICS = ("matching_auc", "matching_accuracy_matched", "matching_accuracy_random")


class Evaluator(base.Evaluator):
    """Matched pairs and random ones, told apart; reads `probe_limit` pictures."""

    place = 1

    @classmethod
    def metrics(cls, objectives: Mapping[str, type]) -> tuple[str, ...]:
        return METRICS if objective_of(objectives, ScoresPairs) else ()

    def evaluate(self, predictor: Predictor, split: str, *, final: bool) -> Iterator[tuple[str, float]]:
        sizes = {"batch_size": self.options["batch_size"], "limit": self.options["probe_limit"]}
        return evaluate(predictor, self.run.data(split), **sizes)


def evaluate(predictor: Predictor, data: EvaluationSet, *, batch_size: int, limit: int) -> Iterator[tuple[str, float]]:
    """matching_auc (percent) and matching_accuracy_{matched, random} (percent of pairs on the right side of log-odds 0;
    in training one pair in three is matched), of pictures with their first caption and with another's.

    Args:
        limit: pictures that are read; 0 = all.
    """
    if not predictor.offers(ScoresPairs):
        return
    matched, wrong = pair_scores(predictor, data, batch_size=batch_size, limit=limit)
    yield "matching_auc", 100.0 * area_under_roc(matched, wrong)
    yield "matching_accuracy_matched", 100.0 * float(np.mean(matched > 0))
    yield "matching_accuracy_random", 100.0 * float(np.mean(wrong <= 0))


def pair_scores(
    predictor: Predictor, data: EvaluationSet, *, batch_size: int, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds of each picture with its first caption, and with that of a picture far from it in the set."""
    pictures = np.arange(len(data.images))[: limit or None]
    others, first = data.other_pictures(), data.first_captions
    matched, wrong = [], []
    for start in range(0, len(pictures), encoding.IMAGE_BLOCK):  # sequences of one block at a time are held
        chosen = pictures[start : start + encoding.IMAGE_BLOCK]
        texts = np.concatenate([first[chosen], first[others[chosen]]])
        image_ISD, _ = encoding.encode_images(predictor, data, batch_size, chosen)
        text_TLD, _ = encoding.encode_texts(predictor, data, batch_size, texts)
        wanted_IT = np.tile(np.eye(len(chosen), dtype=bool), (1, 2))
        score_IT = encoding.match_scores(predictor, image_ISD, text_TLD, data.text["token_valid"][texts], wanted_IT)
        rows = np.arange(len(chosen))
        matched.append(score_IT[rows, rows])
        wrong.append(score_IT[rows, len(chosen) + rows])
    return np.concatenate(matched), np.concatenate(wrong)


def area_under_roc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The share of (positive, negative) pairs whose positive scores higher, a tie counting half (Mann-Whitney)."""
    negative = np.sort(negative)
    below = np.searchsorted(negative, positive, side="left")
    not_above = np.searchsorted(negative, positive, side="right")
    return float(np.mean(below + not_above)) / (2 * len(negative))
