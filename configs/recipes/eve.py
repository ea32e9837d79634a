"""EVE (arXiv 2308.11971): one encoder with experts by modality and routed ones; pixels or words are masked, in turn."""

from ml_collections import ConfigDict

from configs.recipes import parts


def recipe(config: ConfigDict, setting: parts.Setting) -> None:
    parts.single_stream(config)
    fusion = config.model.fusion
    fusion.kind, fusion.block_kind = "experts", "experts"
    fusion.norm, fusion.eps, fusion.activation = "pre", 1e-6, "quick_gelu"
    fusion.experts = ConfigDict(
        {
            "layers": 2 if fusion.depth < 24 else 3,  # routed blocks, the last of all; 0 = none
            "count": 4 if setting.short else 32,  # experts of each
            "top": 2,  # that a position goes through
            "mlp_ratio": fusion.mlp_ratio,  # the hidden layer of each is so many times as wide as the stream
            "lower": "modality",  # feed-forward layers of the blocks below: modality (one for each) | shared
        }
    )
    # The paper does not give its size: MAE's.
    decoder = {"depth": setting.decoder_depth} if setting.short else {"depth": 8, "width": 512, "heads": 16}
    fusion.decoder = ConfigDict(decoder)
    config.model.image.hidden = "drop_in_fusion"
    config.masking.image_cell, config.masking.image_ratio, config.masking.text_ratio = 1, 0.75, 0.5
    config.objectives = ConfigDict(
        {
            "masked_image": {
                "name": "masked_image",
                "weight": parts.SHORT_PIXELS if setting.short else 1.0,
                "other": "clean",
                "norm": "l2",
                "decoder": {"depth": 0, "width": fusion.width},
            },
            "masked_text": {"name": "masked_text", "weight": 1.0, "other": "clean", "tie": False},
            "load_balance": {"name": "load_balance", "weight": 0.001},
        }
    )
