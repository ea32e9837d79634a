"""After SyncMask (arXiv 2404.01156): MaskVLM, masked where the moving average's cross-attention says both modalities meet.

Of the paper the idea is public, not the values: these are ours (docs/architecture.md).
"""

from ml_collections import ConfigDict

from configs.recipes import maskvlm, parts


def recipe(config: ConfigDict, setting: parts.Setting) -> None:
    maskvlm.recipe(config, setting)
    config.optim.ema_decay = 0.995
    config.masking.image_ratio, config.masking.text_ratio = 0.5, 0.3
    # Single patches: which of them are hidden is what the teacher is asked for.
    config.masking.image_cell = 1
    # layer: of the fusion, from 0, the last where there are fewer; sampler: gumbel | top | hint.
    config.masking.masker = ConfigDict({"name": "attended", "layer": 2, "sampler": "gumbel"})
    config.objectives.contrastive = ConfigDict(parts.momentum_contrastive(setting))
    config.objectives.matching.negatives = "semi_hard"
