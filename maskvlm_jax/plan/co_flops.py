"""Matmul FLOPs of streams that read each other (medical M3AE); conventions as in `plan.flops`.

What does not depend on the other modality is computed once a view: what enters the first layer, and its keys and
values. All else is computed for every pass and every pair, and up to the layer that is read.
"""

from ml_collections import ConfigDict

from maskvlm_jax.data.masking import masked_patch_count
from maskvlm_jax.objectives.masked_positions import masked_token_capacity
from maskvlm_jax.plan.products import attend, attend_itself, dense, encoder_block, feed_forward, project
from maskvlm_jax.runtime.errors import UserError


def parts(config: ConfigDict) -> dict[str, float]:
    """Forward FLOPs of one pair by part, see `flops.flops_per_pair`."""
    return _Count(config).parts()


class _Count:
    def __init__(self, config: ConfigDict):
        self._image, self._text, self._fusion = config.model.image, config.model.text, config.model.fusion
        self._objectives = {label: one for label, one in config.objectives.items() if one.weight}
        stacks = (self._image, self._text, self._fusion.decoder)
        kinds = {self._fusion.block_kind, *(stack.get("kind", "dense") for stack in stacks)}
        if kinds != {"dense"} or not self._fusion.decoder or self._image.get("embedding", "patch") != "patch":
            raise UserError("FLOPs of co streams are counted for dense blocks, patches and a decoder of pictures")
        if any(one.get("other", "clean") != "clean" for one in self._objectives.values()):
            raise UserError("FLOPs of co streams are counted where one modality is masked at a time")
        grid, image = self._image.image_size // self._image.patch, self._image
        self._patches, self._pixels = grid**2, 3 * image.patch**2
        masking = config.masking
        self._hidden = masked_patch_count(grid, cell=masking.image_cell, ratio=masking.image_ratio)
        self._words = self._text.max_length
        self._masked_words = masked_token_capacity(self._words, masking.text_ratio)
        self._whole = image.class_token + image.distillation_token + image.registers + self._patches
        self._shown = self._whole - self._hidden
        self._names = {one.name for one in self._objectives.values()}

    def parts(self) -> dict[str, float]:
        count = {"masked_normalised": self._masked_image, "masked_text": self._masked_text, "matching": self._matching}
        if unknown := self._names - count.keys():
            raise UserError(f"the FLOPs of the objective {min(unknown)} are not known; set its weight to 0")
        encoders = {"image_encoder": self._images(), "text_encoder": self._texts(), "memory": self._memory()}
        return encoders | {label: count[one.name]() for label, one in self._objectives.items()}

    def _images(self) -> float:
        lengths = self._shown * ("masked_normalised" in self._names), self._whole * self._reads_whole_pictures
        patches = dense(self._patches, self._pixels, self._image.width)
        return sum(patches + self._image.depth * encoder_block(self._image, length) for length in lengths if length)

    def _texts(self) -> float:
        views = ("masked_text" in self._names) + bool({"masked_normalised", "matching"} & self._names)
        return views * self._text.depth * encoder_block(self._text, self._words)

    @property
    def _reads_whole_pictures(self) -> bool:
        return bool({"masked_text", "matching"} & self._names)

    def _memory(self) -> float:
        """What enters the first layer of each view, and its keys and values where another stream reads them."""
        tap, depth = self._fusion.tap, self._fusion.depth
        pixels, words, matching = (name in self._names for name in ("masked_normalised", "masked_text", "matching"))
        views = (
            (self._whole, words or matching, words or matching),
            (self._shown, pixels, pixels and tap > 1),
            (self._words, (pixels and tap > 0) or matching, (pixels and tap > 0) or matching),
            (self._words, words, words and depth > 1),
        )
        width = self._fusion.width
        return sum(dense(n, width, width) * enters + project(self._fusion, n) * read for n, enters, read in views)

    def _masked_image(self) -> float:
        decoder = ConfigDict({**self._fusion, **self._fusion.decoder})
        width, wide, read, length = self._fusion.width, decoder.width, self._hidden, self._whole
        blocks = (decoder.depth - 1) * encoder_block(decoder, length)
        blocks += attend_itself(decoder, length, read) + feed_forward(decoder, read)
        ends = dense(self._shown, width, wide) + dense(read, wide, width) + dense(read, width, self._pixels)
        return self._stream(self._shown, self._words, self._fusion.tap, self._shown) + blocks + ends

    def _masked_text(self) -> float:
        read = self._masked_words
        stream = self._stream(self._words, self._whole, self._fusion.depth, read)
        return stream + dense(read, self._fusion.width, self._text.vocab_size)

    def _matching(self) -> float:
        lengths, width, depth = (self._whole, self._words), self._fusion.width, self._fusion.depth
        start = sum(attend_itself(self._fusion, length, length if depth > 1 else 1) for length in lengths)
        if depth == 1:
            pair = sum(self._rest(1, other) for other in lengths)
        else:
            last = sum(self._layer(own, other, 1) for own, other in (lengths, lengths[::-1]))
            pair = self._both(depth - 1, *lengths) + last
        return start + 3 * (pair + 2 * dense(1, width, width) + dense(1, 2 * width, 2))

    def _both(self, layers: int, own: int, other: int) -> float:
        """Both streams behind so many layers, their first self-attention left out."""
        first = self._rest(own, other) + self._rest(other, own)
        return first + (layers - 1) * (self._layer(own, other, own) + self._layer(other, own, other))

    def _stream(self, own: int, other: int, layers: int, read: int) -> float:
        """One stream behind so many layers, at `read` positions of the last of them."""
        if layers == 0:
            return 0.0
        if layers == 1:
            positions = read if self._fusion.depth == 1 else own
            return attend_itself(self._fusion, own, positions) + self._rest(positions, other)
        start = attend_itself(self._fusion, own, own) + attend_itself(self._fusion, other, other)
        return start + self._both(layers - 1, own, other) + self._layer(own, other, read)

    def _layer(self, own: int, other: int, read: int) -> float:
        """One layer of one stream at `read` of its positions."""
        keys = project(self._fusion, other)
        return keys + attend_itself(self._fusion, own, read) + self._rest(read, other)

    def _rest(self, positions: int, other: int) -> float:
        """What follows self-attention and the projection of keys and values."""
        return attend(self._fusion, positions, other) + feed_forward(self._fusion, positions)
