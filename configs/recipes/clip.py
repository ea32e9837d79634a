"""CLIP (arXiv 2103.00020): the contrastive loss alone, no fusion."""

from ml_collections import ConfigDict

from configs.recipes import parts


def recipe(config: ConfigDict, setting: parts.Setting) -> None:
    config.model.fusion = ConfigDict({"kind": "none"})
    config.model.image.hidden = "none"
    config.objectives = ConfigDict({"contrastive": parts.contrastive()})
