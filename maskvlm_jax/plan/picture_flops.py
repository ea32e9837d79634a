"""FLOPs of a model of pictures alone (FastMIM); see `plan.flops`."""

from ml_collections import ConfigDict

from maskvlm_jax.data.masking import masked_patch_count
from maskvlm_jax.objectives.hog import BINS
from maskvlm_jax.plan.products import attend_itself, dense, encoder_block, feed_forward
from maskvlm_jax.runtime.errors import UserError


def parts(config: ConfigDict, batch_size: int) -> dict[str, float]:
    """Forward FLOPs of one picture by part; targets have no products.

    Raises:
        UserError: blocks, patches or objectives of another kind.
    """
    image, masking, parts = config.model.image, config.masking, {}
    grid, pixels = image.image_size // image.patch, 3 * image.patch**2
    if image.hidden != "pixel" or image.kind != "dense" or image.get("embedding", "patch") != "patch":
        raise UserError("FLOPs of pictures alone are counted for recipe=fastmim's own blocks, patches and colour only")
    length = image.class_token + image.distillation_token + image.registers + grid**2
    read = masked_patch_count(grid, cell=masking.image_cell, ratio=masking.image_ratio)
    # The colour is embedded once a batch.
    embedded = dense(grid**2, pixels, image.width) + dense(1, pixels, image.width) / batch_size
    parts["image_encoder"] = embedded + image.depth * encoder_block(image, length)
    for label, one in config.objectives.items():
        if one.weight and one.name != "masked_patches":
            raise UserError(f"the FLOPs of the objective {one.name} are not known; set its weight to 0")
        if one.weight:
            decoder, cells = one.decoder, (image.patch // one.cell) ** 2
            blocks = (decoder.depth - 1) * encoder_block(decoder, length)
            blocks += attend_itself(decoder, length, read) + feed_forward(decoder, read)
            values = pixels if one.target == "pixels" else 3 * BINS * cells
            parts[label] = dense(length, image.width, decoder.width) + blocks + dense(read, decoder.width, values)
    return parts
