"""MLIM (arXiv 2109.12178): one stream over embeddings, words and pixels rebuilt, masks that know their modality."""

from ml_collections import ConfigDict

from configs.recipes import parts


def recipe(config: ConfigDict, setting: parts.Setting) -> None:
    parts.single_stream(config)
    config.model.fusion.kind = "joint"
    config.model.image.embedding, config.model.image.channels = "conv", 32
    config.model.shared_mask = True
    masking = config.masking
    masking.policy, masking.light_ratio, masking.image_cell = "modality_aware", 0.15, 1
    masking.image_ratio = masking.text_ratio = 0.8  # of the heavily masked modality
    config.objectives = ConfigDict(
        {
            "masked_image": {
                "name": "reconstruction",
                "weight": parts.SHORT_PIXELS if setting.short else 1.0,
                "region": "all",  # all | masked
                "channels": 32,
            },
            "masked_text": {"name": "masked_text", "weight": 1.0, "other": "masked", "tie": False},
        }
    )
