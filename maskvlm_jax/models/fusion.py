"""Fusion: how image and text sequences become one another's context. Every kind has the same five methods.

    image_side, text_side    one modality as the fusion reads it, prepared once however often it is read
    fuse                     the fused sequences of a batch of pairs
    pair_image, pair_text    what matching reads of a picture or a caption, prepared once for all its pairs
    match                    one vector a pair, for a batch of gathered pictures and captions

`CrossFusion` is here; `JointFusion` (merged and single stream) in `models/joint.py`.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.cross import CrossStack, Memory, interleave_valid, take_valid
from maskvlm_jax.models.layers import Positions, Valid, interleave, take_rows
from maskvlm_jax.models.primitives import First, with_even_length

Keys = tuple[jax.Array | None, jax.Array | None]


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
        """Fused image positions `read_BR` of `image_BSD`, all where None."""

    def text(self, read_BR: jax.Array | None = None) -> jax.Array:
        """Fused text positions `read_BR` of `text_BLD`, all where None."""


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
        stack: arguments of each `CrossStack`.
    """

    drops = False  # whether hidden positions are left out here rather than in the encoders

    def __init__(self, *, streams: str, rngs: nnx.Rngs, **stack: Any):
        self.image_stream = CrossStack(**stack, rngs=rngs) if streams == "both" else None
        self.text_stream = CrossStack(**stack, rngs=rngs)

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
