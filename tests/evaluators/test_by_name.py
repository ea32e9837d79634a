"""Nothing is found by its label, and a new evaluator is a file and a line of config."""

import pytest

from configs import pretrain
from maskvlm_jax.evaluators import evaluation
from maskvlm_jax.objectives import base
from maskvlm_jax.objectives.matching import Objective as Matching
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import rules
from tests.reference import toy

NEW = '''
"""How bright pictures are, and how long captions."""

from maskvlm_jax.evaluators import base


class Evaluator(base.Evaluator):
    best = ("caption_words",)

    @classmethod
    def metrics(cls, objectives):
        return ("caption_words",)

    def evaluate(self, predictor, split, *, final):
        captions = self.run.data(split).captions[: self.options["captions"]]
        yield "caption_words", sum(len(caption.split()) for caption in captions) / len(captions)
'''


def relabelled() -> dict:
    """A toy model's objectives under labels of one letter."""
    learner = toy.learner(depth=1)
    return {letter: learner.objectives[label] for letter, label in zip("dcba", sorted(learner.objectives), strict=True)}


def test_an_objective_is_found_by_what_it_offers_whatever_its_label():
    found = relabelled()
    assert base.label_of(found, base.TrainsEmbeddings) == "d"
    assert isinstance(base.objective_of(found, base.ScoresPairs), Matching)
    assert base.objective_of(found, base.PredictsFeatures) is None


def test_metrics_do_not_follow_from_labels():
    config = pretrain.get_config()
    named = {label: config.objectives[label] for label in ("contrastive", "matching")}
    with config.unlocked():
        for label, other in (("contrastive", "itc"), ("matching", "itm")):
            config.objectives[other] = named[label]
            del config.objectives[label]
    rules.check(config)
    assert set(evaluation.metrics_during(config)) == set(evaluation.metrics_during(pretrain.get_config()))


def with_a_new_evaluator(folder, **options):
    (folder / "length_of_caption.py").write_text(NEW)
    config = pretrain.get_config()
    config.evals.length = {"name": str(folder / "length_of_caption.py"), "during": True, **options}
    return config


def test_a_new_evaluator_is_a_file_and_a_line(tmp_path):
    config = with_a_new_evaluator(tmp_path, captions=3)
    config.evaluation.best_metric = "caption_words"
    evaluation.check_best_metric(config)
    assert evaluation.metrics_during(config)[-1] == "caption_words"
    assert evaluation.best_value(config, {"caption_words": 4.0, "mean_recall": 2.0}) == 4.0


def test_an_evaluator_that_is_not_there_is_told_with_those_that_are():
    config = pretrain.get_config()
    config.evals.retrieval.name = "retreival"
    with pytest.raises(UserError, match=r"there is no evaluator 'retreival'; choose among .*calibration, .*figures, "):
        evaluation.check_best_metric(config)


def test_a_model_that_nothing_scores_during_training_gets_the_other_scores():
    config = pretrain.get_config("recipe=mlim")
    assert "masked_text_accuracy_matched" in evaluation.metrics_during(config)
    config.evals.probes.during = True
    assert "masked_text_accuracy_matched" in evaluation.metrics_during(config)
    assert "masked_text_accuracy_matched" not in evaluation.metrics_during(pretrain.get_config())
