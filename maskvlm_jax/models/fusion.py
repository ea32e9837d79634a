"""Fusion: how image and text sequences become one another's context. Every kind has the same eight methods.

    image_side, text_side    one modality as the fusion reads it, prepared once however often it is read
    fuse                     the fused sequences of a batch of pairs
    pair_image, pair_text    what matching reads of a picture or a caption, prepared once for all its pairs
    match                    one vector a pair, for a batch of gathered pictures and captions
    attention                how much the modalities attend to each other in one layer
    probed                   the vectors of `match`, to be differentiated by the weights of one layer

`CrossFusion` is here; `CoFusion` in `models/co.py`, `JointFusion` (merged and single stream) and `AutoencoderFusion` in
`models/joint.py`, `ExpertFusion` in `models/experts.py`.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.attention import First, Valid, with_even_length
from maskvlm_jax.models.block import BlockSpec
from maskvlm_jax.models.cross import CrossStack, Memory, interleave_valid, take_valid
from maskvlm_jax.models.layers import Positions, interleave, take_rows

Keys = tuple[jax.Array | None, jax.Array | None]


class Lengths(NamedTuple):
    """What a fusion must know of the sequences that it reads.

    prefix: positions of `image_BSD` before its first patch; patches: N; words: the most positions of a caption.
    """

    prefix: int
    patches: int
    words: int


class Attention(NamedTuple):
    """How much positions of one modality attend to those of the other in one layer, by head; float32.

    text_BHLN: of words to patches. image_BHNL: of patches to words; None where no stream has them.
    In a joint sequence what a position gives to its own modality is missing from its sum.
    """

    text_BHLN: jax.Array
    image_BHNL: jax.Array | None


def layer_number(layer: int, depth: int) -> int:
    """A layer counted from the first or, where negative, from the last; a fusion with fewer has its last one read."""
    return max(0, depth + layer) if layer < 0 else min(layer, depth - 1)


class Side:
    """One modality of a batch: its encoder's output and what streams of the other modality read of it.

    Args:
        sequence_BSD: the encoder's output.
        valid_BS: which of its positions are real; None = all.
        visible: positions that were not hidden; None = nothing is hidden, or hidden ones hold mask tokens.
        project: makes the memory; called when it is first asked for.
    """

    def __init__(
        self,
        sequence_BSD: jax.Array,
        valid_BS: Valid = None,
        visible: Positions | None = None,
        project: Callable[[jax.Array, Valid], Any] | None = None,
    ):
        self.sequence_BSD, self.valid_BS, self.visible, self._project = sequence_BSD, valid_BS, visible, project

    @cached_property
    def memory(self) -> Any:
        return self._project(self.sequence_BSD, self.valid_BS)


class Fused(Protocol):
    """The fused sequences of a batch, computed when they are asked for."""

    def image(self, read_BR: jax.Array | None = None) -> jax.Array:
        """Fused image positions `read_BR` of `image_BSD`, all if None."""

    def text(self, read_BR: jax.Array | None = None) -> jax.Array:
        """Fused text positions `read_BR` of `text_BLD`, all if None."""


class PairSide(NamedTuple):
    """One modality as matching reads it, rows are examples; what a kind of fusion does not need is None.

    start_BRD: what its stream starts from; memory: what the other stream reads; valid_BS: its real positions.
    """

    start_BRD: jax.Array | None
    memory: Memory | None
    valid_BS: Valid

    @staticmethod
    def interleave(sides: Sequence["PairSide"]) -> "PairSide":
        """Several sides of as many examples each, example by example."""
        start, memory, valid = zip(*sides, strict=True)
        return PairSide(
            None if start[0] is None else interleave(start),
            None if memory[0] is None else Memory.interleave(memory),
            interleave_valid(valid),
        )

    def gather(self, ids_P: jax.Array, shares: int = 1) -> "PairSide":
        """The rows `ids_P`; `shares` as in `take_rows`."""
        start = None if self.start_BRD is None else take_rows(self.start_BRD, ids_P, 0, shares)
        memory = None if self.memory is None else self.memory.gather(ids_P, shares)
        return PairSide(start, memory, take_valid(self.valid_BS, ids_P, shares))


class CrossFusion(nnx.Module):
    """Streams that read the other encoder's output: g_im and g_txt of MaskVLM, or the text stream alone, as ALBEF.

    Args:
        streams: "both", or "text" (ALBEF, arXiv 2107.07651: no image position is fused).
        spec, depth: of each `CrossStack`.
    """

    drops = False  # whether hidden positions are left out here rather than in the encoders
    pair_vectors = 1  # of the stream's width, that `match` puts side by side

    def __init__(self, spec: BlockSpec, lengths: Lengths, *, depth: int, streams: str, rngs: nnx.Rngs):
        self.image_stream = CrossStack(spec, depth=depth, rngs=rngs) if streams == "both" else None
        self.text_stream = CrossStack(spec, depth=depth, rngs=rngs)
        self.prefix, self.patches = lengths.prefix, lengths.patches
        self.heads = spec.heads

    def image_side(self, image_BSD: jax.Array, visible: Positions | None = None) -> Side:
        return Side(*with_even_length(image_BSD, self.text_stream.heads), project=self.text_stream.project)

    def text_side(self, text_BLD: jax.Array, valid_BL: jax.Array, visible: Positions | None = None) -> Side:
        return Side(text_BLD, First.of(valid_BL), project=self.image_stream and self.image_stream.project)

    def fuse(self, image: Side, text: Side, keys: Keys = (None, None)) -> Fused:
        return _CrossFused(self, image, text, keys)

    def pair_image(self, image: Side, key: jax.Array | None = None) -> PairSide:
        return PairSide(self._start(self.image_stream, image, key), image.memory, image.valid_BS)

    def pair_text(self, text: Side, key: jax.Array | None = None) -> PairSide:
        memory = text.memory if self.image_stream else None
        return PairSide(self._start(self.text_stream, text, key), memory, text.valid_BS)

    def match(self, image: PairSide, text: PairSide, keys: Keys = (None, None)) -> jax.Array:
        """pair_PD: z_im^cross ∘ z_txt^cross (MaskVLM, Eq. 3), or the fused start token of the text stream alone."""
        first = jnp.zeros((text.start_BRD.shape[0], 1), jnp.int32)
        # The text stream keeps its own padding when it is paired with another picture.
        text_PRD = self.text_stream.finish(text.start_BRD, image.memory, text.valid_BS, first, keys[1])
        pair_PD = text_PRD[:, 0].astype(jnp.float32)
        if self.image_stream:
            image_PRD = self.image_stream.finish(image.start_BRD, text.memory, image.valid_BS, first, keys[0])
            pair_PD *= image_PRD[:, 0].astype(jnp.float32)
        return pair_PD

    def attention(self, image: Side, text: Side, layer: int) -> Attention:
        """See `Attention`; negative layers count from the last."""
        layer, patches = layer_number(layer, self.text_stream.depth), slice(self.prefix, self.prefix + self.patches)
        text_BHLS = self.text_stream.memory_weights(text.sequence_BSD, image.memory, text.valid_BS, layer)
        image_BHSL = None
        if self.image_stream:
            image_BHSL = self.image_stream.memory_weights(image.sequence_BSD, text.memory, image.valid_BS, layer)
        return Attention(text_BHLS[..., patches], None if image_BHSL is None else image_BHSL[:, :, patches])

    def probed(self, image: Side, text: Side, layer: int, added_BHLN: jax.Array) -> tuple[jax.Array, jax.Array]:
        """pair_BD, as `match` makes it of each picture and its caption, and text_BHLN, the weights of words to patches
        in one layer of the text stream.

        Args:
            layer: counted from 0.
            added_BHLN: is added to these weights: zeros, by which the pair can be differentiated.
        """
        behind = image.sequence_BSD.shape[1] - self.prefix - self.patches
        added_BHLS = jnp.pad(added_BHLN, ((0, 0), (0, 0), (0, 0), (self.prefix, behind)))
        # Whole: in the last layer the start token alone reaches the pair, in the others every word does.
        probed = self.text_stream.probed(text.sequence_BSD, image.memory, text.valid_BS, layer, added_BHLS)
        pair_BD, text_BHLS = probed[0][:, 0].astype(jnp.float32), probed[1]
        if self.image_stream:
            first = jnp.zeros((len(pair_BD), 1), jnp.int32)
            image_BRD = self.image_stream(image.sequence_BSD, text.memory, image.valid_BS, first)
            pair_BD *= image_BRD[:, 0].astype(jnp.float32)
        return pair_BD, text_BHLS[..., self.prefix : self.prefix + self.patches]

    @staticmethod
    def _start(stack: CrossStack | None, side: Side, key: jax.Array | None) -> jax.Array | None:
        if stack is None:
            return None
        first = jnp.zeros((side.sequence_BSD.shape[0], 1), jnp.int32)
        return stack.start(side.sequence_BSD, side.valid_BS, first, key)


class _CrossFused:
    def __init__(self, fusion: CrossFusion, image: Side, text: Side, keys: Keys):
        self._fusion, self._image, self._text, self._keys = fusion, image, text, keys

    def image(self, read_BR: jax.Array | None = None) -> jax.Array:
        stream, image = self._fusion.image_stream, self._image
        fused_BRD = stream(image.sequence_BSD, self._text.memory, image.valid_BS, read_BR, self._keys[0])
        whole = read_BR is None and image.valid_BS is not None
        return fused_BRD[:, : image.valid_BS.count] if whole else fused_BRD

    def text(self, read_BR: jax.Array | None = None) -> jax.Array:
        stream, text = self._fusion.text_stream, self._text
        return stream(text.sequence_BSD, self._image.memory, text.valid_BS, read_BR, self._keys[1])
