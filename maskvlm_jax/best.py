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
_READS = ("matched", "shuffled", "empty")
# Of a model that ranks nothing, by what is trained.
PROBES = {
    "masked_text": (
        *(f"masked_text_{kind}_{reads}" for kind in ("loss", "accuracy") for reads in _READS),
        *(f"masked_text_accuracy_{name}" for name in ("gain", "gain_low", "gain_high", "neighbours")),
    ),
    "masked_image": (
        *(f"masked_image_{kind}_{reads}" for kind in ("loss", "psnr") for reads in _READS),
        *(f"masked_image_psnr_{name}" for name in ("gain", "gain_low", "gain_high", "blend")),
    ),
    "masked_feature": tuple(f"masked_feature_cosine_{reads}" for reads in _READS),
}


def metrics_taken(config: ConfigDict) -> tuple[str, ...]:
    """What evaluations during a training take."""
    trained = {label for label, objective in config.objectives.items() if objective.weight}
    if not trained & {"contrastive", "matching"}:
        return tuple(name for label, names in PROBES.items() if label in trained for name in names)
    ranks = RANKS if "contrastive" in trained else tuple(f"match_{name}" for name in RANKS)
    return (*ranks, *(PAIRS if "matching" in trained else ()))


def check(config: ConfigDict) -> None:
    """To be called before the first step: the first evaluation may come hours later.

    Raises:
        UserError: `evaluation.best_metric` is none of those that are taken.
    """
    _check(config.evaluation.best_metric, metrics_taken(config))


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
