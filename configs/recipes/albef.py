"""ALBEF (arXiv 2107.07651): text masked only, a text stream over the picture, queue and momentum distillation."""

from ml_collections import ConfigDict

from configs.recipes import parts


def recipe(config: ConfigDict, setting: parts.Setting) -> None:
    config.model.fusion.kind, config.model.fusion.streams = "cross", "text"
    config.model.image.hidden = "none"
    config.masking.text_ratio, config.masking.text_corruption = 0.15, "bert"
    config.optim.ema_decay = 0.995
    config.objectives = ConfigDict(
        {
            "masked_text": {
                "name": "distilled_masked_text",
                "weight": 1.0,
                "other": "clean",
                "tie": False,
                "alpha": 0.4,
                "ramp": parts.SOFT_RAMP,
            },
            "contrastive": parts.momentum_contrastive(setting),
            "matching": parts.matching(setting),
        }
    )
