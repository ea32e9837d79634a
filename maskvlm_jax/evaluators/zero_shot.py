"""Classes of pictures by their names alone, through prompts (CLIP, arXiv 2103.00020, 3.1).

A picture is of the class whose vector has the largest cosine with it; the vector of a class is the mean of those of its
prompts (`evaluators.prompts`). A model without a contrastive space tells by the mean log-odds of matching with the
class's prompts: as many pairs as pictures, classes and templates together, so take few templates.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from maskvlm_jax.evaluators import encoding, prompts
from maskvlm_jax.evaluators.classes import Classes, Predictions, names_of
from maskvlm_jax.evaluators.predictor import Predictor
from maskvlm_jax.objectives.base import ScoresPairs, TrainsEmbeddings, objective_of
from maskvlm_jax.runtime.errors import UserError


class Evaluator(Classes):
    """zero_shot_accuracy, zero_shot_accuracy_5 and zero_shot_accuracy_per_class, in percent.

    Options: `label`, the array that holds the right class, whose field or whose source names the classes; `names`, a
    file of other names; `templates`, a file of templates, see `prompts`.
    """

    best = ("zero_shot_accuracy",)
    prefix, first = "zero_shot", (5,)

    @classmethod
    def metrics(cls, objectives: Mapping[str, type]) -> tuple[str, ...]:
        scores = objective_of(objectives, TrainsEmbeddings) or objective_of(objectives, ScoresPairs)
        return cls.names_of_metrics() if scores else ()

    def names(self, split: str) -> tuple[str, ...]:
        """Of the file `names`, or those of the field or source.

        Raises:
            UserError: there are none.
        """
        if self.options["names"]:
            return prompts.read_names(self.options["names"])
        label = self.options["label"]
        if found := names_of(self.run, label, split):
            return found
        raise UserError(
            f"classes have no names; set --config.data.fields.{label}.classes, or --config.evals.zero_shot.names to a "
            "file with one a line"
        )

    def predictions(self, predictor: Predictor, split: str) -> Predictions | None:
        if not (predictor.offers(TrainsEmbeddings) or predictor.offers(ScoresPairs)):
            return None
        data, size, names = self.run.data(split), self.options["batch_size"], self.names(split)
        label_I = np.asarray(data.of_picture[self.options["label"]][np.arange(len(data.images))])
        if label_I.max() >= len(names):
            raise UserError(
                f"{data.ids[label_I.argmax()]} is of class {label_I.max()}, and {len(names)} classes have names; "
                "name them all"
            )
        texts = prompts.prompts(names, prompts.read_templates(self.options["templates"]))
        tokens_TL, valid_TL = self.run.tokenizer.encode_all(texts, self.run.config.model.text.max_length)
        text_TLD, text_TE = encoding.encode_tokens(predictor, tokens_TL, valid_TL, size)
        if predictor.offers(TrainsEmbeddings):
            class_CE = prompts.class_vectors(text_TE, len(names))
            return Predictions.of(encoding.embed_images(predictor, data, size) @ class_CE.T, label_I)
        odds_IT = encoding.all_scores(predictor, data, text_TLD, valid_TL, size)
        return Predictions.of(odds_IT.reshape(len(odds_IT), len(names), -1).mean(axis=2), label_I)

    def protocol(self, split: str) -> dict[str, Any]:
        templates = prompts.read_templates(self.options["templates"])
        by = "contrastive" if objective_of(self.run.objectives, TrainsEmbeddings) else "matching"
        return {"zero_shot": {"classes": len(self.names(split)), "templates": list(templates), "by": by}}
