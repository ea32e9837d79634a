"""Questions about pictures, answered by one of a list of answers: VQA v2 (Goyal et al. 2017, arXiv 1612.00837).

Answers are classes here (`objectives.answer_classes`); task=vqa_text has them as texts. The list is made of the answers
that are trained on, those of nine questions and more, or given as data.fields.answers.file. Of generated scenes
questions are made by code.
"""

from ml_collections import ConfigDict

from maskvlm_jax.data.scenes import questions
from maskvlm_jax.data.sources.vqa import SUBSETS
from maskvlm_jax.training.tasks import reading


def task(config: ConfigDict, here: str) -> None:
    generated = reading.choose(config, scenes="questions", files="vqa", splits=SUBSETS, images="")
    if generated:
        # Questions have words that captions have not: what is learned is more than a head.
        config.steps, config.eval_every, config.checkpoint_every = 2_400, 400, 400
        config.optim.lr = config.optim.encoder_lr = 1e-3
    else:
        # The answer may be the side on which something is; and only the server scores `test`.
        config.data.augment.flip, config.evaluation.split = False, "val"
    reading.set_length(config, epochs=8.0, batch_size=256)
    answers = questions.ANSWERS if generated else ()
    field = ConfigDict({"name": "answers", "answers": answers, "file": "", "least": 9, "count": len(answers)})
    config.data.fields.answers = field
    # One value, by either name.
    count = field.get_ref("count")
    config.objectives.answers = ConfigDict(
        {"name": "answer_classes", "weight": 1.0, "label": "answers", "count": count}
    )
    config.evals = ConfigDict({"vqa": {"name": "answers", "during": True, "field": "answers"}})
