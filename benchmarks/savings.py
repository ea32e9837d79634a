"""What each exact saving leaves out of a training step of MaskVLM, by the count of `maskvlm_jax/flops.py`.

    python benchmarks/savings.py --shape torch-tiny
    python benchmarks/savings.py --size base --data coco

Nothing is run. That no number changes is tested in tests/models/test_savings.py and test_primitives.py.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ml_collections import ConfigDict

from benchmarks import train_step
from benchmarks.command import finish
from maskvlm_jax.data.masking import masked_patch_count
from maskvlm_jax.objectives.masked_positions import masked_token_capacity
from maskvlm_jax.plan import flops, products
from maskvlm_jax.settings import rules as configs

PAIRS = 3  # that matching scores an example


def savings(config: ConfigDict) -> dict[str, float]:
    """Training GFLOP of a pair that each saving leaves out, the later ones from what the earlier ones leave."""
    image, text, fusion = config.model.image, config.model.text, config.model.fusion
    decoder = config.objectives.masked_image.decoder
    grid = image.image_size // image.patch
    patches, pixels, words = grid**2, 3 * image.patch**2, text.max_length
    positions = image.class_token + image.distillation_token + image.registers + patches
    masked_patches = masked_patch_count(grid, cell=config.masking.image_cell, ratio=config.masking.image_ratio)
    masked_words = masked_token_capacity(words, config.masking.text_ratio)

    def at_read(block: Any, length: int, context: int, read: int) -> tuple[float, float]:
        """Left out of the last block by computing it at `read` positions, and then by projecting no key for these."""
        if block.depth == 1:  # its self-attention is the one that runs once an input
            whole, there = (products.attend(block, n, context) + flops.feed_forward(block, n) for n in (length, read))
            return whole - there, 0.0
        whole, there = (
            flops.project(block, length)
            + products.attend(block, n, length)
            + products.attend(block, n, context)
            + flops.feed_forward(block, n)
            for n in (length, read)
        )
        plain = flops.project(block, length) + products.attend(block, read, length)
        return whole - there, plain - flops.attend_itself(block, length, read)

    streams = [
        at_read(decoder, positions, words, masked_patches),
        at_read(fusion, words, positions, masked_words),
        *[at_read(fusion, positions, words, 1), at_read(fusion, words, positions, 1)] * PAIRS,
    ]
    encode_image = flops.dense(patches, pixels, image.width) + image.depth * flops.encoder_block(image, positions)
    encode_text = text.depth * flops.encoder_block(text, words)
    project = fusion.depth * (flops.project(fusion, positions) + flops.project(fusion, words))
    start = flops.cross_start(fusion, positions, 1) + flops.cross_start(fusion, words, 1)
    left_out = {
        # The clean views are read by three objectives each.
        "every view encoded once": 2 * (encode_image + encode_text),
        # By one masked objective and by matching, for a picture or a caption of every pair.
        "keys and values of the other modality once": PAIRS * project,
        "the first self-attention once an input, not once a pair": (PAIRS - 1) * start,
        "pixels and words at masked positions only": flops.dense(patches - masked_patches, decoder.width, pixels)
        + flops.dense(words - masked_words, text.width, text.vocab_size),
        "the last cross block at the positions that are read": sum(whole for whole, _ in streams),
        "no keys and values for a few queries": sum(few for _, few in streams),
    }
    return {name: 3 * value / 1e9 for name, value in left_out.items()}


def run(config: ConfigDict) -> dict[str, Any]:
    """GFLOP of a pair as it is trained, and what is left out by name.

    Raises:
        UserError: another recipe, whose FLOPs are not counted, or values that do not fit together.
    """
    configs.check(config)
    return {
        "training_gflop_per_pair": flops.train_flops_per_pair(config, config.batch_size),
        "left_out": savings(config),
    }


def table(result: dict[str, Any]) -> str:
    """The measurements as a table in Markdown."""
    left, without = result["training_gflop_per_pair"], result["training_gflop_per_pair"]
    without += sum(result["left_out"].values())
    lines = ["| | GFLOP a pair | of the step without any |", "|---|---|---|", f"| without any | {without:.4g} | |"]
    for name, value in result["left_out"].items():
        lines.append(f"| {name} | -{value:.3g} | {value / without:.1%} |")
    lines.append(f"| as trained | {left:.4g} | {left / without:.1%} |")
    return "\n".join(lines)


def main() -> int:
    """Reads the flags, counts and prints; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    train_step.add_model_flags(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    return finish(lambda: run(train_step.chosen_config(args)), table, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
