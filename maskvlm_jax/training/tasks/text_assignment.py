"""To which of two pictures does a caption belong, if to any? Three classes of two pairs that share their text.

ALBEF's step between pre-training and NLVR2 (Li et al. 2021, arXiv 2107.07651): no task of its own but a start for
`nlvr`, on the captions of pre-training, see `data.sources.assignments`. Its two pairs are read as those of `nlvr`.
"""

from ml_collections import ConfigDict

from maskvlm_jax.data.sources import assignments
from maskvlm_jax.evaluators.classes import Classes
from maskvlm_jax.training.tasks import reading


def task(config: ConfigDict, here: str) -> None:
    if config.data.mixture:
        raise ValueError("a mixture is not read by this task; give one set")
    config.data.of, config.data.source = config.data.source, "assignments"
    config.evaluation.captions_per_image = 0
    if not config.epochs:
        config.steps = 2_000
        config.eval_every = config.checkpoint_every = 500
    reading.set_length(config, epochs=1.0, batch_size=256)
    classes = assignments.LABELS
    config.data.fields.label = ConfigDict({"name": "label", "key": "label", "classes": classes, "count": len(classes)})
    config.data.fields.image2 = ConfigDict({"name": "picture", "key": "image2"})
    objective = {"name": "pair_classes", "weight": 1.0, "classes": len(classes), "label": "label"}
    config.objectives.assignment = ConfigDict({**objective, "second": {"image": "image2"}, "combine": "concat"})
    config.evals = ConfigDict({"assignment": {"name": here, "during": True}})


class Evaluator(Classes):
    """assignment_accuracy and assignment_accuracy_per_class, in percent."""

    best = ("assignment_accuracy",)
    prefix = "assignment"
