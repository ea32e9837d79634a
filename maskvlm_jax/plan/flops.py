"""Matmul FLOPs of a pre-training step, from the config alone.

Counts what the code computes, with what it saves: every view is encoded once, a memory is projected once for all that
read it, matching runs the first self-attention once an input and not once a pair, the last cross block is computed at
the read positions only, without keys and values of its own where these are few, and so are pixels and vocabulary
logits. Text counts at its full length, padding included.

A multiply-add is two. Left out are element-wise work, softmax, norms, look-ups and the optimizer.
"""

from typing import Any

from ml_collections import ConfigDict

from maskvlm_jax.data.masking import masked_patch_count
from maskvlm_jax.models.fusion import layer_number
from maskvlm_jax.models.pooling import OF_TWO
from maskvlm_jax.objectives.masked_positions import masked_token_capacity
from maskvlm_jax.plan import co_flops, expert_flops, picture_flops
from maskvlm_jax.plan.products import (
    attend,
    attend_itself,
    cross_finish,
    cross_start,
    dense,
    encoder_block,
    feed_forward,
    project,
)
from maskvlm_jax.runtime.errors import UserError


def flops_per_pair(config: ConfigDict, batch_size: int) -> dict[str, float]:
    """Forward GFLOP of one image-text pair by part.

    Args:
        config: of a pre-training run of MaskVLM, with SyncMask's masks and momentum contrast or without; of SemMIM; of
            medical M3AE; of EVE, whose experts count where a position goes through them; or of FastMIM, whose pair is
            a picture.
        batch_size: examples that the in-batch losses see at once.
    Raises:
        UserError: another recipe, blocks of another kind, or another masker.
    Returns:
        `image_encoder` and `text_encoder` (all views), `memory` (keys and values that the cross-modality encoders
        read, of medical M3AE those of the first layer with what enters it; EVE has none), `teacher` (all passes of the
        moving average, where one is read, with its heads), and each objective by its label: cross-modality encoders
        and decoder, its head, and for a contrastive one the two projections and the similarity of a pair with the batch
        and a queue.
        Objectives of weight 0 are not there.
    """
    if config.masking.masker and config.masking.masker.name not in ("attended", "text_guided"):
        raise UserError(
            f"FLOPs are not counted of the masker {config.masking.masker.name}, but of attended and text_guided"
        )
    if config.masking.masker and config.model.fusion.kind != "cross":
        raise UserError(f"FLOPs of a masker are not counted with a fusion of kind {config.model.fusion.kind}")
    if config.model.fusion.kind == "experts":
        return {name: flops / 1e9 for name, flops in expert_flops.parts(config).items()}
    if config.model.fusion.kind == "co":
        return {name: flops / 1e9 for name, flops in co_flops.parts(config).items()}
    if config.model.text.kind == "none":
        return {name: flops / 1e9 for name, flops in picture_flops.parts(config, batch_size).items()}
    if (
        config.model.fusion.kind != "cross"
        or config.model.fusion.streams != "both"
        or config.model.image.hidden in ("pixel", "drop")
    ):
        raise UserError(
            "FLOPs are counted for recipe=eve, m3ae_med and fastmim, and for recipe=maskvlm, syncmask and semmim where "
            "their encoders see hidden patches as tokens"
        )
    stacks = [config.model.image, config.model.text, config.objectives.get("masked_image", {}).get("decoder", {})]
    if {config.model.fusion.block_kind, *(stack.get("kind", "dense") for stack in stacks)} != {"dense"}:
        raise UserError("FLOPs are counted for dense blocks only")
    count = _Count(config, batch_size)
    parts = {"image_encoder": count.image_encoder(), "text_encoder": count.text_encoder(), "memory": count.memory()}
    if count.has_teacher:
        parts["teacher"] = count.teacher()
    parts |= {label: count.objective(options) for label, options in count.objectives.items()}
    return {name: flops / 1e9 for name, flops in parts.items()}


def train_flops_per_pair(config: ConfigDict, batch_size: int) -> float:
    """GFLOP of forward and backward pass of one pair: three times the forward pass, and once that of a teacher.

    The backward pass of a product is two products of its size. That is a little too much: pixels want no gradient, so
    the patch embedding has one only, and neither have the similarities that matching draws from and a teacher's.
    Recomputation under `remat` is not counted.
    """
    parts = flops_per_pair(config, batch_size)
    teacher = parts.pop("teacher", 0.0)
    return teacher + 3 * sum(parts.values())


class _Count:
    """Forward FLOPs of the parts of one config."""

    def __init__(self, config: ConfigDict, batch_size: int):
        self._image, self._text, self._fusion = config.model.image, config.model.text, config.model.fusion
        self._embed, self._pooling, self._batch_size = config.model.embed, config.model.pooling, batch_size
        grid = self._image.image_size // self._image.patch
        prefix = self._image.class_token + self._image.distillation_token + self._image.registers
        self._patches, self._image_length, self._text_length = grid**2, prefix + grid**2, self._text.max_length
        self._pixels = 3 * self._image.patch**2
        masking = config.masking
        self._masked_patches = masked_patch_count(grid, cell=masking.image_cell, ratio=masking.image_ratio)
        self._masked_tokens = masked_token_capacity(self._text_length, masking.text_ratio)
        self.objectives = {k: options for k, options in config.objectives.items() if options.weight}
        self._names = {options.name for options in self.objectives.values()}
        self._momentum = "momentum_contrastive" in self._names
        self._agreement, self._prototype = self._only("agreement"), self._only("masked_prototype")
        # Masks that nothing reads are not made.
        self._masks_image = bool(masking.masker) and "masked" in self._image_views()
        both = bool(masking.masker) and masking.masker.name == "attended"
        self._masks_text = both and "masked" in self._text_views()
        self._masker = masking.masker if self._masks_image or self._masks_text else {}
        self.has_teacher = bool(self._masker or self._momentum or self._agreement or self._prototype)

    def _only(self, name: str) -> Any:
        """The options of the objective of a name, {} if it is not trained."""
        return next((options for options in self.objectives.values() if options.name == name), {})

    @property
    def _crops(self) -> bool:
        """Whether another crop of each picture is read."""
        return bool(self._agreement) and self._agreement.between == "crops"

    def image_encoder(self) -> float:
        return len(self._image_views()) * self._one_image()

    def text_encoder(self) -> float:
        return len(self._text_views()) * self._one_text()

    def _image_views(self) -> set[str]:
        masked = bool(self._prototype) or (bool(self._agreement) and not self._crops)
        views = self._views("masked_image", "masked_text") | ({"masked"} if masked else set())
        return views | ({"clean", "crop"} if self._crops else set())

    def _text_views(self) -> set[str]:
        return self._views("masked_text", "masked_image") | ({"clean"} if self._predicts_fused else set())

    @property
    def _predicts_fused(self) -> bool:
        return bool(self._prototype) and self._prototype.prediction == "fused"

    @property
    def _targets_fused(self) -> bool:
        return bool(self._prototype) and self._prototype.target == "fused"

    def _one_image(self) -> float:
        patches = dense(self._patches, self._pixels, self._image.width)
        return patches + self._image.depth * encoder_block(self._image, self._image_length)

    def _one_text(self) -> float:
        return self._text.depth * encoder_block(self._text, self._text_length)

    def teacher(self) -> float:
        """Both encoders, and what is read of them: attention, projections, fused patches, prototypes."""
        embedded = self._projections() if self._momentum else 0.0
        images = (1 + self._crops) * self._one_image()
        texts = self._one_text() if self._masker or self._momentum or self._targets_fused else 0.0
        fused = self._fused_patches() if self._targets_fused else 0.0
        heads = sum(self._rows(options) * self._prototypes(options) for options in (self._agreement, self._prototype))
        return images + texts + embedded + fused + heads + self._masks()

    def _masks(self) -> float:
        """What the masker reads: the attention of one layer of each stream, or of that of words, or cosines."""
        if not self._masker:
            return 0.0
        image, text, masker = self._image_length, self._text_length, self._masker
        if masker.get("by") == "cosine":
            return dense(self._patches, self._image.width, 1)
        layer = layer_number(masker.get("layer", 2), self._fusion.depth)
        of_patches = self._attention(layer, text, image) if self._masks_image else 0.0
        return of_patches + (self._attention(layer, image, text) if self._masks_text else 0.0)

    def _fused_patches(self) -> float:
        """Fused masked patches of one pass, and the memory of words that they read."""
        return self._fusion.depth * project(self._fusion, self._text_length) + self._fuse_patches()

    def _fuse_patches(self) -> float:
        image, text, read = self._image_length, self._text_length, self._masked_patches
        return cross_start(self._fusion, image, read) + cross_finish(self._fusion, image, text, read)

    def _rows(self, options: Any) -> int:
        """Vectors of an example that are held against those of the teacher."""
        if not options:
            return 0
        return self._masked_patches if options.name == "masked_prototype" else 1 + self._crops

    def _prototypes(self, options: Any) -> float:
        """The head, of one vector."""
        if not options:
            return 0.0
        head, width = options.head, self._image.width
        layers = dense(1, width, head.hidden) + dense(1, head.hidden, head.hidden)
        return layers + dense(1, head.hidden, head.bottleneck) + dense(1, head.bottleneck, head.count)

    def _attention(self, layer: int, length: int, context: int) -> float:
        """The weights of a layer of a stream over `context` positions, and all that is below it."""
        fusion, width = self._fusion, self._fusion.width
        # Keys of all layers are projected at once, and so are values, which the first layer's weights do not need.
        memory = fusion.depth * project(fusion, context) / (1 if layer else 2)
        below = layer * (attend(fusion, length, context) + feed_forward(fusion, length))
        weights = dense(length, width, width) + dense(length, width, context)
        return memory + (layer + 1) * attend_itself(fusion, length, length) + below + weights

    def memory(self) -> float:
        images = len(self._others("masked_text")) * project(self._fusion, self._image_length)
        read = self._others("masked_image") | ({"clean"} if self._predicts_fused else set())
        texts = len(read) * project(self._fusion, self._text_length)
        return self._fusion.depth * (images + texts)

    def objective(self, options: Any) -> float:
        """One objective without the encoders and the memory, which it shares."""
        count = {
            "masked_image": self._masked_image,
            "masked_text": self._masked_text,
            "contrastive": self._contrastive,
            "momentum_contrastive": self._momentum_contrastive,
            "matching": self._matching,
            "agreement": self._own_prototypes,
            "masked_prototype": self._own_prototypes,
        }
        if options.name not in count:
            raise UserError(f"the FLOPs of the objective {options.name} are not known; set its weight to 0")
        return count[options.name](options)

    def _masked_image(self, options: Any) -> float:
        image, text, read = self._image_length, self._text_length, self._masked_patches
        fusion = cross_start(self._fusion, image, image) + cross_finish(self._fusion, image, text, image)
        memory = options.decoder.depth * project(options.decoder, text)
        decoder = cross_start(options.decoder, image, read) + cross_finish(options.decoder, image, text, read)
        return fusion + memory + decoder + dense(read, options.decoder.width, self._pixels)

    def _masked_text(self, options: Any) -> float:
        image, text, read = self._image_length, self._text_length, self._masked_tokens
        fusion = cross_start(self._fusion, text, read) + cross_finish(self._fusion, text, image, read)
        return fusion + dense(read, self._text.width, self._text.vocab_size)

    def _own_prototypes(self, options: Any) -> float:
        fused = self._fuse_patches() if options.get("prediction") == "fused" else 0.0
        return fused + self._rows(options) * self._prototypes(options)

    def _contrastive(self, options: Any) -> float:
        return self._projections() + dense(1, self._embed, self._batch_size)

    def _momentum_contrastive(self, options: Any) -> float:
        # Each direction is of the model and, for its targets, of the teacher.
        own = 0.0 if "contrastive" in self._names else self._projections()
        return own + 4 * dense(1, self._embed, self._batch_size + options.queue)

    def _projections(self) -> float:
        image = self._projection(self._image, self._image_length, "image")
        return image + self._projection(self._text, self._text_length, "text")

    def _projection(self, part: Any, length: int, modality: str) -> float:
        width, kind, pooled = part.width, self._pooling[modality], 0.0
        if "attention" in kind:
            pooled = dense(length, width, part.heads) + dense(part.heads, length, width) + dense(1, width, width)
        width = 2 * width if kind in OF_TWO else width
        return pooled + (self._pooling.layers - 1) * dense(1, width, width) + dense(1, width, self._embed)

    def _matching(self, options: Any) -> float:
        image, text = self._image_length, self._text_length
        start = cross_start(self._fusion, image, 1) + cross_start(self._fusion, text, 1)
        pair = cross_finish(self._fusion, image, text, 1) + cross_finish(self._fusion, text, image, 1)
        # The negatives are drawn from the similarity, whoever computes it.
        if "contrastive" in self._names:
            similarity = 0.0
        else:
            similarity = dense(1, self._embed, self._batch_size) if self._momentum else self._contrastive(options)
        return start + 3 * (pair + dense(1, self._text.width, 2)) + similarity

    def _views(self, hidden_by: str, read_by: str) -> set[str]:
        """Views of the modality that one objective hides parts of and another reads as context."""
        views = {"masked"} if hidden_by in self._names else set()
        clean = {"clean"} if {"contrastive", "momentum_contrastive", "matching"} & self._names else set()
        return views | clean | {o.other for o in self.objectives.values() if o.name == read_by}

    def _others(self, name: str) -> set[str]:
        """Views that are projected as a memory: those that the objective `name` reads, and matching the clean one."""
        views = {options.other for options in self.objectives.values() if options.name == name}
        return views | ({"clean"} if "matching" in self._names else set())
