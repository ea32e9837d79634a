"""FLOPs of one stream over both modalities whose feed-forward layers are experts (EVE); see `plan.flops`."""

from ml_collections import ConfigDict

from maskvlm_jax.data.masking import masked_patch_count
from maskvlm_jax.objectives.masked_positions import masked_token_capacity
from maskvlm_jax.plan.products import attend_itself, dense, encoder_block, feed_forward
from maskvlm_jax.runtime.errors import UserError


def parts(config: ConfigDict) -> dict[str, float]:
    """Forward FLOPs of one pair by part.

    Not counted is what a device computes beside the experts that a position goes through: others, where all are
    computed, or rows that fill groups up, where they are sorted.

    Raises:
        UserError: blocks, encoders or objectives of another kind.
    """
    return _ExpertCount(config).parts()


class _ExpertCount:
    def __init__(self, config: ConfigDict):
        image, text, self._fusion = config.model.image, config.model.text, config.model.fusion
        self._objectives = {label: one for label, one in config.objectives.items() if one.weight}
        if image.depth or text.depth or any(one.get("other", "clean") != "clean" for one in self._objectives.values()):
            raise UserError("FLOPs of experts are counted for encoders of depth 0 and one masked modality at a time")
        decoders = (one.get("decoder", {}).get("depth", 0) for one in self._objectives.values())
        if self._fusion.block_kind != "experts" or image.get("embedding", "patch") != "patch" or any(decoders):
            raise UserError("FLOPs of experts are counted for recipe=eve's own blocks, patches and decoder only")
        grid, masking = image.image_size // image.patch, config.masking
        self._patches, self._words, self._pixels = grid**2, text.max_length, 3 * image.patch**2
        self._masked_patches = masked_patch_count(grid, cell=masking.image_cell, ratio=masking.image_ratio)
        self._masked_tokens, self._vocabulary = masked_token_capacity(self._words, masking.text_ratio), text.vocab_size
        self._balanced = any(one.name == "load_balance" for one in self._objectives.values())

    def parts(self) -> dict[str, float]:
        count = {"masked_image": self._masked_image, "masked_text": self._masked_text, "load_balance": lambda: 0.0}
        if unknown := {one.name for one in self._objectives.values()} - count.keys():
            raise UserError(f"the FLOPs of the objective {min(unknown)} are not known; set its weight to 0")
        encoders = {"image_encoder": dense(self._patches, self._pixels, self._fusion.width), "text_encoder": 0.0}
        return encoders | {label: count[one.name]() for label, one in self._objectives.items()}

    def _masked_image(self) -> float:
        width, read, shown = self._fusion.width, self._masked_patches, self._patches - self._masked_patches
        decoder = ConfigDict({**self._fusion, **self._fusion.decoder})
        blocks = (decoder.depth - 1) * encoder_block(decoder, self._patches)
        blocks += attend_itself(decoder, self._patches, read) + feed_forward(decoder, read)
        ends = dense(shown, width, decoder.width) + dense(read, decoder.width, width) + dense(read, width, self._pixels)
        return self._stream(self._words + shown, shown) + blocks + ends

    def _masked_text(self) -> float:
        read = self._masked_tokens
        return self._stream(self._words + self._patches, read) + dense(read, self._fusion.width, self._vocabulary)

    def _stream(self, length: int, read: int) -> float:
        """All blocks, the last one at `read` positions; where experts are balanced, up to its router at all."""
        fusion, experts = self._fusion, self._fusion.experts
        last = length if experts.layers and self._balanced else read
        attention = (fusion.depth - 1) * attend_itself(fusion, length, length) + attend_itself(fusion, length, last)
        below = fusion.depth - experts.layers
        through = [length] * (fusion.depth - 1) + [read]  # positions of each block's feed-forward layer
        routed = sum(through[below:]) * experts.top * 2 * dense(1, fusion.width, experts.mlp_ratio * fusion.width)
        asked = [length] * (fusion.depth - 1) + [last]  # positions of each block's router
        router = dense(sum(asked[below:]), fusion.width, experts.count)
        return attention + feed_forward(fusion, sum(through[:below])) + routed + router
