"""Which metric chooses the checkpoint that is kept as the best; larger is better."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from maskvlm_jax.errors import UserError

# What "auto" takes: the first that the model has.
AUTO = (
    "mean_recall",
    "match_mean_recall",
    "masked_text_accuracy_matched",
    "masked_image_psnr_matched",
    "masked_feature_cosine_matched",
)
RANKS = (*(f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)), "mean_recall")
PAIRS = ("matching_auc", "matching_accuracy_matched", "matching_accuracy_random")


def metrics_taken(config: ConfigDict) -> tuple[str, ...]:
    """The metrics of a model that ranks, as evaluations during its training take them; none of one that does not."""
    trained = {label for label, objective in config.objectives.items() if objective.weight}
    ranks = RANKS if "contrastive" in trained else tuple(f"match_{name}" for name in RANKS)
    return (*(ranks if trained & {"contrastive", "matching"} else ()), *(PAIRS if "matching" in trained else ()))


def check(config: ConfigDict) -> None:
    """To be called before the first step: the first evaluation may be hours behind it.

    Raises:
        UserError: `evaluation.best_metric` is none of those that are taken.
    """
    if taken := metrics_taken(config):
        _check(config.evaluation.best_metric, taken)


def value(config: ConfigDict, metrics: Mapping[str, float]) -> float | None:
    """What counts of an evaluation's metrics; None where "auto" knows none of them.

    Raises:
        UserError: `evaluation.best_metric` is none of them.
    """
    name = config.evaluation.best_metric
    if name == "auto":
        return next((metrics[known] for known in AUTO if known in metrics), None)
    _check(name, tuple(metrics))
    return metrics[name]


def _check(name: str, there: tuple[str, ...]) -> None:
    if name not in ("auto", *there):
        raise UserError(f"evaluation.best_metric {name} is no metric; choose among auto, {', '.join(there)}")
