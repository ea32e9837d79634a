"""Which metrics can choose the best checkpoint follows from what is trained."""

import json

import pytest

from configs import pretrain
from maskvlm_jax.evaluators import evaluation
from maskvlm_jax.runtime.errors import UserError


def test_the_metrics_that_can_choose_the_best_are_those_that_are_taken(finished_run):
    lines = map(json.loads, (finished_run[0] / "metrics.jsonl").read_text().splitlines())
    taken = next(set(line) - {"step", "split"} for line in lines if line["split"] == "val")
    assert taken == set(evaluation.metrics_during(pretrain.get_config()))


@pytest.mark.parametrize(
    ("structure", "off", "some"),
    [
        ("recipe=clip", (), {"mean_recall"}),
        ("", ("contrastive",), {"match_mean_recall", "matching_auc"}),
        ("", ("contrastive", "matching"), {"masked_text_accuracy_matched", "masked_image_psnr_gain"}),
        ("recipe=mlim", (), {"masked_text_accuracy_gain_low", "masked_image_psnr_blend"}),
    ],
)
def test_metrics_follow_from_what_is_trained(structure, off, some):
    config = pretrain.get_config(structure)
    for label in off:
        config.objectives[label].weight = 0.0
    taken = set(evaluation.metrics_during(config))
    assert some <= taken
    assert len(taken & {"mean_recall", "match_mean_recall", "masked_text_loss_matched"}) == 1
    config.evaluation.best_metric = "nonsense"
    with pytest.raises(UserError, match="choose among auto"):
        evaluation.check_best_metric(config)
    for name in some:
        config.evaluation.best_metric = name
        evaluation.check_best_metric(config)
