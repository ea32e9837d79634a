"""M3AE (arXiv 2205.14204): a masked autoencoder of both modalities at once that encodes only what is visible."""

from ml_collections import ConfigDict

from configs.recipes import parts


def recipe(config: ConfigDict, setting: parts.Setting) -> None:
    parts.single_stream(config)
    config.model.fusion.kind, config.model.fusion.norm = "autoencoder", "pre"
    config.model.fusion.decoder = ConfigDict({"depth": setting.decoder_depth})
    config.model.image.hidden = "drop_in_fusion"
    config.masking.image_cell, config.masking.image_ratio, config.masking.text_ratio = 1, 0.75, 0.75
    config.objectives = ConfigDict(
        {
            "masked_image": {
                "name": "masked_image",
                "weight": parts.SHORT_PIXELS if setting.short else 1.0,
                "other": "masked",
                "norm": "l2",
                "decoder": {"depth": 0, "width": config.model.fusion.width},
            },
            "masked_text": {"name": "masked_text", "weight": 0.5, "other": "masked", "tie": False},
        }
    )
