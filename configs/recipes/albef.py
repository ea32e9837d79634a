"""ALBEF (arXiv 2107.07651): text masked only, a text stream over the picture, queue and momentum distillation."""

from ml_collections import ConfigDict

from configs.recipes import parts


def recipe(config: ConfigDict, setting: parts.Setting) -> None:
    config.model.fusion.kind, config.model.fusion.streams = "cross", "text"
    config.model.image.hidden = "none"
    config.masking.text_ratio, config.masking.text_corruption = 0.15, "bert"
    config.optim.ema_decay = 0.995
    ramp = (0.0, 1 / 30)  # of alpha: the first of 30 epochs, as its release
    config.objectives = ConfigDict(
        {
            "masked_text": {
                "name": "distilled_masked_text",
                "weight": 1.0,
                "other": "clean",
                "tie": False,
                "alpha": 0.4,
                "ramp": ramp,
            },
            "contrastive": {
                "name": "momentum_contrastive",
                # The queue's loss is the mean of both directions where the other is their sum.
                "weight": 2 * parts.SHORT_CONTRASTIVE if setting.short else 1.0,
                "queue": 1_024 if setting.short else 65_536,  # a sixth of a set of 6,000 pictures, ten batches and more
                "alpha": 0.4,
                "ramp": ramp,
            },
            "matching": parts.matching(setting),
        }
    )
