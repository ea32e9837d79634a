"""FastMIM (arXiv 2212.06593): pictures alone, small ones; hidden patches become a colour, their gradients are told."""

from ml_collections import ConfigDict

from configs.recipes import parts


def recipe(config: ConfigDict, setting: parts.Setting) -> None:
    _make_small(config.model.image)
    config.model.image.hidden = "pixel"
    config.model.text.kind, config.model.text.depth = "none", 0  # words are in the batch, and nothing reads them
    config.model.fusion = ConfigDict({"kind": "none"})
    config.model.embed = 0
    config.masking.image_cell, config.masking.image_ratio = 1, 0.75
    config.data.augment.randaugment_ops = 0  # crops and flips alone
    if not setting.short:
        config.optim.b2, config.optim.final_ratio = 0.95, 0.0
    width, heads = (128, 4) if setting.short else (256, 8)
    config.objectives = ConfigDict(
        {
            "masked_patches": {
                "name": "masked_patches",
                "weight": 1.0,
                "target": "hog",  # hog | pixels
                "cell": 8,  # pixels of a histogram's side
                # Histograms from this length on are made one of length 1; 0 = all (the paper). The grain of a scene's
                # ground has some 200 in a cell, and would be most of what is told.
                "least": 0 if setting.photographs else 1_000,
                "norm": "l2",
                "decoder": {"depth": 1, "width": width, "heads": heads, "mlp_ratio": 4, "norm": "pre", "eps": 1e-6},
            }
        }
    )
    config.evals = ConfigDict({"masked_patches": {"name": "masked_patches", "during": True}})


def _make_small(image: ConfigDict) -> None:
    """The paper's 128 of 224 pixels, in whole patches."""
    grid = image.image_size // image.patch
    if not image.width:  # of an encoder that is read in, with its patch of 14 or 16: 112 pixels are half of its 224
        return
    if grid < 4:  # an object of a scene is a patch of 16, of which no other patch tells: 48 pixels in patches of 8
        image.patch //= 2
    else:
        image.image_size = image.patch * -(-grid * 4 // 7)
