"""MAMO (arXiv 2210.04183): merged fusion; a moving average of the model gives latent targets of both modalities."""

from ml_collections import ConfigDict

from configs.recipes import parts


def recipe(config: ConfigDict, setting: parts.Setting) -> None:
    config.model.fusion.kind = "joint"
    config.model.image.hidden = "drop"  # drop | token
    config.masking.image_ratio, config.masking.image_cell, config.masking.text_ratio = 0.75, 1, 0.25
    config.optim.ema_decay = 0.995
    config.objectives = ConfigDict(
        {
            "masked_representation": {"name": "masked_representation", "weight": 1.0},
            "masked_feature": {"name": "masked_feature", "weight": 1.0},
            "masked_text": {"name": "masked_text", "weight": 1.0, "other": "clean", "tie": False},
            "contrastive": parts.contrastive(parts.SHORT_CONTRASTIVE if setting.short else 1.0),
            "matching": parts.matching(setting),
        }
    )
