"""Medical M3AE (arXiv 2209.07098): streams that read each other; pixels of a middle layer, words of the last."""

from ml_collections import ConfigDict

from configs.recipes import parts


def recipe(config: ConfigDict, setting: parts.Setting) -> None:
    fusion = config.model.fusion
    fusion.kind = "co"
    fusion.depth *= 2  # six layers a stream at the paper's size
    fusion.tap = fusion.depth // 2  # layers behind which a masked picture is read, 0 to `depth`
    decoder = {"norm": "pre", "dropout": 0.0}
    decoder |= {"depth": setting.decoder_depth} if setting.short else {"depth": 4, "width": 384, "heads": 6}
    fusion.decoder = ConfigDict({**decoder, "activation": "quick_gelu"})
    config.model.embed = 0
    config.model.image.hidden = "left_out"
    config.masking.image_cell, config.masking.image_ratio = 1, 0.75
    config.masking.text_ratio, config.masking.text_corruption = 0.15, "bert"
    if not setting.short:
        fusion.dropout = 0.1
        config.optim.b2, config.optim.weight_decay = 0.98, 0.01
    config.objectives = ConfigDict(
        {
            "masked_image": {
                "name": "masked_normalised",
                "weight": parts.SHORT_PIXELS if setting.short else 1.0,
                "other": "clean",
            },
            "masked_text": {"name": "masked_text", "weight": 1.0, "other": "clean", "tie": False},
            "matching": {**parts.matching(), "negatives": "random"},
        }
    )
