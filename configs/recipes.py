"""Recipes: which parts, masks and losses make a method. Each changes a config whose sizes are set; nothing of jax here.

Where a paper does not give a value, docs/architecture.md says which was taken and from where.
"""

from ml_collections import ConfigDict


def matching() -> dict:
    """The matching loss: negatives drawn by similarity; `ramp` makes them uniform at first."""
    return {
        "name": "matching",
        "weight": 1.0,
        "negatives": "hard",  # hard | random, for a model without a contrastive space
        # Of what they are drawn by, softmax(hardness * similarity): 0 = uniform, 1 = ALBEF's.
        "hardness": 1.0,
        "ramp": (0.0, 0.0),  # shares of the run between which the hardness rises from 0; (0, 0) = it is constant
        "pool": "global",
    }


def maskvlm(config: ConfigDict) -> None:
    """MaskVLM (arXiv 2208.02131): one modality masked at a time, rebuilt with the other whole; two cross streams."""
    config.model.fusion.kind, config.model.fusion.streams = "cross", "both"
    decoder = config.model.fusion.copy_and_resolve_references()
    for name in ("kind", "streams"):
        del decoder[name]
    decoder.depth = config.model.decoder_depth
    # weight 0 switches an objective off. "other": the view of the other modality that is read.
    config.objectives = ConfigDict(
        {
            "masked_image": {"name": "masked_image", "weight": 1.0, "other": "clean", "norm": "l1", "decoder": decoder},
            "masked_text": {"name": "masked_text", "weight": 1.0, "other": "clean", "tie": False},
            "contrastive": {"name": "contrastive", "weight": 1.0},
            "matching": matching(),
        }
    )


def albef(config: ConfigDict) -> None:
    """ALBEF (arXiv 2107.07651): text masked only, a text stream over the picture, queue and momentum distillation."""
    config.model.fusion.kind, config.model.fusion.streams = "cross", "text"
    config.model.image.hidden = "none"
    config.masking.text_ratio, config.masking.text_corruption = 0.15, "bert"
    config.optim.ema_decay = 0.995
    ramp = (0.0, 1 / 30)  # of alpha: the first of 30 epochs, as its release
    config.objectives = ConfigDict(
        {
            "masked_text": {
                "name": "distilled_masked_text",
                "weight": 1.0,
                "other": "clean",
                "tie": False,
                "alpha": 0.4,
                "ramp": ramp,
            },
            "contrastive": {
                "name": "momentum_contrastive",
                "weight": 1.0,
                "queue": 65_536,
                "alpha": 0.4,
                "ramp": ramp,
            },
            "matching": matching(),
        }
    )


def clip(config: ConfigDict) -> None:
    """CLIP (arXiv 2103.00020): the contrastive loss alone, no fusion."""
    config.model.fusion = ConfigDict({"kind": "none"})
    config.model.image.hidden = "none"
    config.objectives = ConfigDict({"contrastive": {"name": "contrastive", "weight": 1.0}})


def mamo(config: ConfigDict) -> None:
    """MAMO (arXiv 2210.04183): merged fusion; a moving average of the model gives latent targets of both modalities."""
    config.model.fusion.kind, config.model.fusion.class_tokens = "joint", 1
    config.model.image.hidden = "drop"  # drop | token
    config.masking.image_ratio, config.masking.image_cell, config.masking.text_ratio = 0.75, 1, 0.25
    config.optim.ema_decay = 0.995
    config.objectives = ConfigDict(
        {
            "masked_representation": {"name": "masked_representation", "weight": 1.0},
            "masked_feature": {"name": "masked_feature", "weight": 1.0},
            "masked_text": {"name": "masked_text", "weight": 1.0, "other": "clean", "tie": False},
            "contrastive": {"name": "contrastive", "weight": 1.0},
            "matching": matching(),
        }
    )


def mlim(config: ConfigDict) -> None:
    """MLIM (arXiv 2109.12178): one stream over embeddings, words and pixels rebuilt, masks that know their modality."""
    _single_stream(config)
    config.model.fusion.kind, config.model.fusion.class_tokens = "joint", 0
    config.model.image.embedding, config.model.image.channels = "conv", 32
    config.model.shared_mask, config.model.text.mask_id = True, 4  # the mask token of the tokenizer
    masking = config.masking
    masking.policy, masking.light_ratio, masking.image_cell = "modality_aware", 0.15, 1
    masking.image_ratio = masking.text_ratio = 0.8  # of the heavily masked modality
    config.objectives = ConfigDict(
        {
            "masked_image": {"name": "reconstruction", "weight": 1.0, "region": "all", "channels": 32},  # all | masked
            "masked_text": {"name": "masked_text", "weight": 1.0, "other": "masked", "tie": False},
        }
    )


def m3ae(config: ConfigDict) -> None:
    """M3AE (arXiv 2205.14204): a masked autoencoder of both modalities at once that encodes only what is visible."""
    decoder_depth = config.model.decoder_depth
    _single_stream(config)
    config.model.fusion.kind, config.model.fusion.norm = "autoencoder", "pre"
    config.model.fusion.decoder = ConfigDict({"depth": decoder_depth})
    config.model.fusion.patches = (config.model.image.image_size // config.model.image.patch) ** 2
    config.model.fusion.max_length = config.model.text.max_length
    config.model.image.hidden = "later"
    config.masking.image_cell, config.masking.image_ratio, config.masking.text_ratio = 1, 0.75, 0.75
    none = {"depth": 0, "width": config.model.fusion.width}
    config.objectives = ConfigDict(
        {
            "masked_image": {"name": "masked_image", "weight": 1.0, "other": "masked", "norm": "l2", "decoder": none},
            "masked_text": {"name": "masked_text", "weight": 0.5, "other": "masked", "tie": False},
        }
    )


def _single_stream(config: ConfigDict) -> None:
    """Encoders that only embed, and one stream as deep as image encoder and fusion together; no contrastive space."""
    config.model.fusion.depth += config.model.image.depth
    config.model.image.depth = config.model.text.depth = 0
    config.model.image.class_token = False
    config.model.embed = 0


RECIPES = {"maskvlm": maskvlm, "mlim": mlim, "mamo": mamo, "albef": albef, "clip": clip, "m3ae": m3ae}
