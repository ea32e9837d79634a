"""What several recipes share."""

from typing import NamedTuple

from ml_collections import ConfigDict


class Setting(NamedTuple):
    """What a run is like, beside its sizes.

    short: trained from scratch in minutes to hours, for which a paper's own weights may not be the best.
    photographs: trained on pictures of the world, not on generated scenes.
    decoder_depth: blocks of a decoder of masked pictures.
    """

    short: bool
    photographs: bool
    decoder_depth: int


def matching(setting: Setting | None = None) -> dict:
    """The matching loss: negatives drawn by similarity, uniform at first in a short run on photographs.

    On photographs matching learns nothing in 300 steps if negatives are drawn by similarity from the start
    (docs/reproducing.md); generated scenes do without.
    """
    uniform_at_first = setting is not None and setting.short and setting.photographs
    return {
        "name": "matching",
        "weight": 1.0,
        # hard | semi_hard, less similar than the pair itself | random, for a model without a contrastive space
        "negatives": "hard",
        # Of what they are drawn by, softmax(hardness * similarity): 0 = uniform, 1 = ALBEF's.
        "hardness": 1.0,
        # Shares of the run between which the hardness rises from 0; (0, 0) = it is constant.
        "ramp": (0.3, 0.8) if uniform_at_first else (0.0, 0.0),
        "pool": "global",
    }


def momentum_contrastive(setting: Setting) -> dict:
    """The contrastive loss of ALBEF, with its queue and the soft targets of the moving average."""
    return {
        "name": "momentum_contrastive",
        # The queue's loss is the mean of both directions where the other is their sum.
        "weight": 2 * SHORT_CONTRASTIVE if setting.short else 1.0,
        "queue": 1_024 if setting.short else 65_536,  # a sixth of a set of 6,000 pictures, ten batches and more
        "alpha": 0.4,
        "ramp": SOFT_RAMP,
    }


def cross_decoder(config: ConfigDict, setting: Setting) -> ConfigDict:
    """The decoder of masked pictures that is made of the blocks of a cross fusion."""
    decoder = config.model.fusion.copy_and_resolve_references()
    decoder.kind = decoder.block_kind
    for name in ("block_kind", "streams"):
        del decoder[name]
    decoder.depth = setting.decoder_depth
    return decoder


def contrastive(weight: float = 1.0) -> dict:
    """The in-batch contrastive loss."""
    return {"name": "contrastive", "weight": weight}


SOFT_RAMP = (0.0, 1 / 30)  # of the weight of soft targets: the first of 30 epochs, as ALBEF's release

# The papers sum their losses unweighted. In a short run the contrastive gradient, divided by the temperature, is the
# largest by far and that of the pixels the smallest (benchmarks/loss_gradients.py: 38 to 1 in the image encoder of
# `mini` on photographs); these weights bring them closer.
SHORT_CONTRASTIVE, SHORT_PIXELS = 0.3, 3.0


def single_stream(config: ConfigDict) -> None:
    """Encoders that only embed, and one stream as deep as image encoder and fusion together; no contrastive space."""
    config.model.fusion.depth += config.model.image.depth
    config.model.image.depth = config.model.text.depth = 0
    config.model.image.class_token = False
    config.model.embed = 0
