"""Visual entailment: does a picture entail a sentence, contradict it, or leave it open? Three classes of a pair.

SNLI-VE (Xie et al. 2019, arXiv 1901.06706), read by `data.sources.snli_ve`; of generated scenes see
`data.scenes.hypotheses`. The classes are those of `objectives.pair_classes`, as ALBEF fine-tunes for them.
"""

from ml_collections import ConfigDict

from maskvlm_jax.data.sources import snli_ve
from maskvlm_jax.evaluators.classes import Classes
from maskvlm_jax.training.tasks import reading


def task(config: ConfigDict, here: str) -> None:
    if reading.choose(config, scenes="hypotheses", files="snli_ve", splits=snli_ve.FILES, images="flickr30k-images"):
        config.steps = 1_500
        config.eval_every = config.checkpoint_every = 500
    reading.set_length(config, epochs=5.0, batch_size=256)
    classes = snli_ve.LABELS
    config.data.fields.label = ConfigDict({"name": "label", "key": "label", "classes": classes, "count": len(classes)})
    objective = {"name": "pair_classes", "weight": 1.0, "classes": len(classes), "label": "label"}
    config.objectives.entailment = ConfigDict(objective)
    config.evals = ConfigDict({"entailment": {"name": here, "during": True}})


class Evaluator(Classes):
    """entailment_accuracy and entailment_accuracy_per_class, in percent."""

    best = ("entailment_accuracy",)
    prefix = "entailment"
