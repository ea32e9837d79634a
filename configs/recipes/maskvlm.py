"""MaskVLM (arXiv 2208.02131): one modality masked at a time, rebuilt with the other whole; two cross streams."""

from ml_collections import ConfigDict

from configs.recipes import parts


def recipe(config: ConfigDict, setting: parts.Setting) -> None:
    config.model.fusion.kind, config.model.fusion.streams = "cross", "both"
    # Weight 0 switches an objective off. "other": the view of the other modality that is read. The paper's L1 asks for
    # the median, which is the background until an object is more likely than not: on scenes, trained by itself, it
    # painted none in 600 steps; the squared error did in 200.
    config.objectives = ConfigDict(
        {
            "masked_image": {
                "name": "masked_image",
                "weight": parts.SHORT_PIXELS if setting.short else 1.0,
                "other": "clean",
                "norm": "l2" if setting.short else "l1",
                "decoder": parts.cross_decoder(config, setting),
            },
            "masked_text": {"name": "masked_text", "weight": 1.0, "other": "clean", "tie": False},
            "contrastive": parts.contrastive(parts.SHORT_CONTRASTIVE if setting.short else 1.0),
            "matching": parts.matching(setting),
        }
    )
