"""What both sides of the comparison with PyTorch share: sizes of the model, and the batch that is read. NumPy alone."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from maskvlm_jax.data import masking

PAD, START, END, MASK, FIRST_WORD = 0, 2, 3, 4, 5  # ids of the package's own tokenizer
LOSSES = ("masked_image", "masked_text", "contrastive", "matching")


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a MaskVLM; all of its blocks have one width.

    mask_cell is the side of a masking unit in patches, length and vocab are the text's, embed the contrastive space's.
    """

    image_size: int
    patch: int
    mask_cell: int
    width: int
    heads: int
    image_depth: int
    text_depth: int
    cross_depth: int
    decoder_depth: int
    length: int
    vocab: int
    embed: int
    batch_size: int
    image_ratio: float = 0.6
    text_ratio: float = 0.3

    def settings(self) -> dict[str, Any]:
        """The shape as values of `configs/pretrain.py`, with the paper's blocks, losses and rates."""
        depths = {
            "model.image": self.image_depth,
            "model.text": self.text_depth,
            "model.fusion": self.cross_depth,
            "objectives.masked_image.decoder": self.decoder_depth,
        }
        values = {
            "batch_size": self.batch_size,
            "model.image.image_size": self.image_size,
            "model.image.patch": self.patch,
            "model.text.max_length": self.length,
            "model.text.vocab_size": self.vocab,
            "model.embed": self.embed,
            "model.shared.init_std": 0.02,
            "masking.image_cell": self.mask_cell,
            "masking.image_ratio": self.image_ratio,
            "masking.text_ratio": self.text_ratio,
            "objectives.masked_image.norm": "l1",
            "optim.lr": 3e-4,
            "optim.encoder_lr": 1e-5,
            "optim.b2": 0.999,
            "optim.temperature_rate": 1.0,
            "model.temperature_scale": "linear",
            "objectives.matching.ramp": (0.0, 0.0),
            "objectives.matching.hardness": 1.0,
        }
        for part, depth in depths.items():
            values |= {f"{part}.width": self.width, f"{part}.heads": self.heads, f"{part}.depth": depth}
            if part != "model.image":  # a ViT is pre-norm always
                values[f"{part}.norm"] = "post"
        return values | {f"objectives.{name}.weight": 1.0 for name in LOSSES}

    def batch(self, seed: int = 0) -> dict[str, np.ndarray]:
        """A batch for a model of this shape; see `synthetic_batch`."""
        names = ("batch_size", "image_size", "patch", "mask_cell", "image_ratio", "length", "vocab", "text_ratio")
        return synthetic_batch(**{name: getattr(self, name) for name in names}, seed=seed)


# The first two are the paper's model made small enough for a CPU: post-norm text and cross blocks as there, which the
# sizes of `configs/common.py` that train from scratch do not have. The last is the paper's, for an accelerator.
SHAPES = {
    "torch-tiny": Shape(
        image_size=64,
        patch=8,
        mask_cell=2,
        width=192,
        heads=3,
        image_depth=6,
        text_depth=4,
        cross_depth=2,
        decoder_depth=2,
        length=24,
        vocab=1_024,
        embed=256,
        batch_size=64,
    ),
    "torch-small": Shape(
        image_size=112,
        patch=16,
        mask_cell=1,
        width=384,
        heads=6,
        image_depth=8,
        text_depth=6,
        cross_depth=3,
        decoder_depth=3,
        length=32,
        vocab=8_192,
        embed=256,
        batch_size=32,
    ),
    "torch-base": Shape(
        image_size=224,
        patch=16,
        mask_cell=2,
        width=768,
        heads=12,
        image_depth=12,
        text_depth=12,
        cross_depth=3,
        decoder_depth=3,
        length=30,
        vocab=50_265,
        embed=256,
        batch_size=128,
    ),
}


def synthetic_batch(
    *,
    batch_size: int,
    image_size: int,
    patch: int,
    mask_cell: int,
    image_ratio: float,
    length: int,
    vocab: int,
    text_ratio: float,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """A batch as `maskvlm_jax.data.batch` describes it: random normalised pixels, random words, exact masks.

    Captions take from half the text length to all of it, the rest is padding.
    """
    rng = np.random.default_rng(seed)
    lengths_B1 = rng.integers(length // 2, length + 1, size=(batch_size, 1))
    position_L = np.arange(length)
    words_BL = (position_L > 0) & (position_L < lengths_B1 - 1)
    tokens_BL = np.where(words_BL, rng.integers(FIRST_WORD, vocab, size=(batch_size, length)), PAD)
    tokens_BL[:, 0] = START
    tokens_BL[position_L == lengths_B1 - 1] = END
    word_ids_BL = np.where(words_BL, position_L, -1)
    text_masked_BL = np.stack([masking.sample_text_mask(rng, ids, ratio=text_ratio) for ids in word_ids_BL])
    cells = {"cell": mask_cell, "ratio": image_ratio}
    image_masked = [masking.sample_image_mask(rng, image_size // patch, **cells) for _ in range(batch_size)]
    return {
        "image": rng.standard_normal((batch_size, image_size, image_size, 3), np.float32),
        "tokens": tokens_BL.astype(np.int32),
        "tokens_masked": np.where(text_masked_BL, MASK, tokens_BL).astype(np.int32),
        "token_valid": position_L < lengths_B1,
        "image_masked": np.stack(image_masked),
        "text_masked": text_masked_BL,
        "pair_id": np.arange(2 * batch_size, dtype=np.int32).reshape(batch_size, 2),
        "example_valid": np.ones(batch_size, bool),
    }
