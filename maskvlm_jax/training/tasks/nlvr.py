"""Sentences that are true or false of two pictures: two classes of two pairs that share their text.

NLVR2 (Suhr et al. 2019, arXiv 1811.00491), read by `data.sources.nlvr2`; of generated scenes see
`data.scenes.statements`. The pairs (T, I1) and (T, I2) are fused apart and their vectors concatenated, as MaskVLM does
(arXiv 2208.02131): no block is doubled, as ALBEF does. ALBEF's step before it is a task of its own, `text_assignment`.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from ml_collections import ConfigDict

from maskvlm_jax.data.sources import nlvr2
from maskvlm_jax.evaluators.classes import Classes, Predictions
from maskvlm_jax.training.tasks import reading


def task(config: ConfigDict, here: str) -> None:
    if reading.choose(config, scenes="statements", files="nlvr2", splits=nlvr2.FILES, images="images"):
        config.steps = 2_000
        config.eval_every = config.checkpoint_every = 500
    reading.set_length(config, epochs=10.0, batch_size=128)
    classes = nlvr2.LABELS
    config.data.fields.label = ConfigDict({"name": "label", "key": "label", "classes": classes, "count": len(classes)})
    config.data.fields.image2 = ConfigDict({"name": "picture", "key": "image2"})
    objective = {"name": "pair_classes", "weight": 1.0, "classes": len(classes), "label": "label"}
    config.objectives.nlvr = ConfigDict({**objective, "second": {"image": "image2"}, "combine": "concat"})
    config.evals = ConfigDict({"nlvr": {"name": here, "during": True}})


class Evaluator(Classes):
    """nlvr_accuracy, nlvr_accuracy_per_class, and nlvr_consistency: the share of the sentences that are told right of
    all pairs of pictures that they are asked of (Suhr et al. 2019); in percent."""

    best = ("nlvr_accuracy",)
    prefix = "nlvr"

    @classmethod
    def metrics(cls, objectives: Mapping[str, type]) -> tuple[str, ...]:
        there = super().metrics(objectives)
        return (*there, "nlvr_consistency") if there else ()

    def scores(self, found: Predictions, split: str) -> Iterator[tuple[str, float]]:
        yield from super().scores(found, split)
        yield "nlvr_consistency", consistency(self.run.data(split).ids, found.right_I)


def consistency(ids: list[str], right_I: np.ndarray) -> float:
    """The share of the sentences of which every example is told right, in percent."""
    of_sentence: dict[str, bool] = {}
    for one, right in zip(ids, right_I.tolist(), strict=True):
        sentence = nlvr2.sentence_of(one)
        of_sentence[sentence] = of_sentence.get(sentence, True) and right
    return 100.0 * float(np.mean(list(of_sentence.values())))
