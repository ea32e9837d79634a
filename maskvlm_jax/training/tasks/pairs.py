"""Are two products the same? Two classes of two pairs, each a picture and a text; with parts that are absent.

MLIM's downstream task (arXiv 2109.12178), of which neither set nor rates are public: `data.sources.product_pairs` reads
one's own pairs, `data.scenes.products` generates some. As there, fine-tuning drops a modality of both products of some
examples (`data.modality_dropout`), so that the model tells by what is left where a picture or a text is absent.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from ml_collections import ConfigDict

from maskvlm_jax.data.sources import product_pairs
from maskvlm_jax.evaluators.classes import Classes, Predictions, logits_of
from maskvlm_jax.evaluators.matching import area_under_roc
from maskvlm_jax.evaluators.predictor import Predictor
from maskvlm_jax.objectives.base import Classifies, objective_of
from maskvlm_jax.training.tasks import reading


def task(config: ConfigDict, here: str) -> None:
    if reading.choose(config, scenes="products", files="product_pairs", splits=product_pairs.FILES, images="images"):
        config.steps = 2_000
        config.eval_every = config.checkpoint_every = 500
    else:
        config.data.augment.flip = False  # what one text says of sides is not known of the other
    reading.set_length(config, epochs=10.0, batch_size=128)
    config.data.modality_dropout = 0.3
    config.data.fields.label = ConfigDict({"name": "label", "key": "label", "classes": (0, 1), "count": 2})
    config.data.fields.image2 = ConfigDict({"name": "picture", "key": "image2"})
    config.data.fields.text2 = ConfigDict({"name": "text", "key": "text2"})
    objective = {"name": "pair_classes", "weight": 1.0, "classes": 2, "label": "label"}
    second = {"image": "image2", "text": "text2"}
    config.objectives.pairs = ConfigDict({**objective, "second": second, "combine": "compare"})
    config.evals = ConfigDict({"pairs": {"name": here, "during": True}})


METRICS = ("pairs_accuracy", "pairs_pr_auc", "pairs_roc_auc")


class Evaluator(Classes):
    """pairs_accuracy, pairs_pr_auc, the area under precision over recall of the pairs that are the same (the score of
    MLIM), and pairs_roc_auc; in percent."""

    best = ("pairs_pr_auc",)
    prefix = "pairs"

    @classmethod
    def metrics(cls, objectives: Mapping[str, type]) -> tuple[str, ...]:
        return METRICS if objective_of(objectives, Classifies) else ()

    def evaluate(self, predictor: Predictor, split: str, *, final: bool) -> Iterator[tuple[str, float]]:
        if not predictor.offers(Classifies):
            return
        logits_I2, label_I = self.fetched(predictor, split, logits_of)
        self._found = {**self._found, split: Predictions.of(logits_I2, label_I)}
        score_I = logits_I2[:, 1] - logits_I2[:, 0]  # log-odds of the same product
        same, other = score_I[label_I == 1], score_I[label_I == 0]
        # What is no number is on the wrong side.
        same, other = np.nan_to_num(same, nan=-np.inf), np.nan_to_num(other, nan=np.inf)
        values = (np.mean([*(same > 0), *(other < 0)]), average_precision(same, other), area_under_roc(same, other))
        yield from ((name, 100.0 * float(value)) for name, value in zip(METRICS, values, strict=True))


def average_precision(positive: np.ndarray, negative: np.ndarray) -> float:
    """The area under precision over recall: the mean over positives of the precision where each is the last found.

    Pairs of one score are found together. 0 where nothing is positive.
    """
    falling = np.sort(positive)[::-1], np.sort(negative)[::-1]
    found, wrong = (np.searchsorted(-scores, -positive, side="right") for scores in falling)
    return float(np.mean(found / (found + wrong))) if len(positive) else 0.0
