"""After SyncMask (arXiv 2404.01156): MaskVLM, hiding what a teacher's attention says that picture and caption share.

Of the paper the idea is public, not its values: these are ours (docs/architecture.md).
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
    # Batches of examples that are alike, by what another model makes of them (maskvlm_jax/data/grouping.py).
    config.data.grouping = ConfigDict(
        {
            "checkpoint": "",  # a workdir or an export with a contrastive space; "" = every epoch is a random order
            "checkpoint_step": "latest",  # of that workdir: latest | best | a number
            "part": 1_920,  # examples among which the next one is looked for
            "ranks": (2, 10),  # of the candidates, the likest being 1, that it is drawn from; (1, 1) = GRIT-VLP's
        }
    )
