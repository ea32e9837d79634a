"""Two streams that read each other layer by layer, as medical M3AE has them (Chen et al. 2022, arXiv 2209.07098).

    x' = x + SelfAttn(x);   x'' = x' + CrossAttn(x', y);   x <- x'' + FFN(x'')        y likewise over x

Keys and values are of the *other stream's* input of the same layer, where a stream of `models.cross` reads the same
output of the other encoder in every layer. So features of both modalities have levels: masked words are read behind the
last layer, and a masked picture behind layer `tap`, of which the layers above learn nothing. It is told by its visible
patches alone, and a decoder puts the hidden ones in their places.

With pre-norm blocks what a layer does not norm by itself, keys and values and what the decoder reads, is standardised:
a norm's scale and shift would be those of the dense layer that follows.
"""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models import primitives
from maskvlm_jax.models.attention import First, Valid, with_even_length
from maskvlm_jax.models.block import BlockSpec
from maskvlm_jax.models.cross import CrossStack, Memory
from maskvlm_jax.models.fusion import Attention, Fused, Keys, Lengths, PairSide, Side, layer_number
from maskvlm_jax.models.layers import Dense, Positions, take, token_init
from maskvlm_jax.models.patch_decoder import PatchDecoder
from maskvlm_jax.models.primitives import spread


class _Stream(NamedTuple):
    """One of the two streams on its way: its blocks, where it is, which of its positions are real, dropout by layer.

    keys_A2: two a layer, of self-attention and of all else; None = no dropout.
    """

    stack: CrossStack
    x_BSD: jax.Array
    valid_BS: Valid
    keys_A2: jax.Array | None


class CoFusion(nnx.Module):
    """Two streams over each other's states, and a decoder of masked pictures.

    A pair is read at the class token of the one stream and the start token of the other, tanh of a dense layer each.

    Args:
        lengths: of the sequences that are fused.
        spec, depth: of each stream.
        tap: layers behind which a masked picture is read for the decoder, 0 to `depth`; behind 0 it has not seen the
            caption.
        decoder: values of the decoder's spec and depth that differ from the streams'; {}: there is none, hidden patches
            are the encoder's matter and all is read behind the last layer.
    """

    pair_vectors = 2

    def __init__(
        self, spec: BlockSpec, lengths: Lengths, *, depth: int, tap: int, decoder: dict[str, Any], rngs: nnx.Rngs
    ):
        width = spec.width
        common = {"init_std": spec.init_std, "rngs": rngs}
        self.image_input, self.text_input = (Dense(width, width, dtype=spec.dtype, **common) for _ in range(2))
        self.image_type, self.text_type = (
            nnx.Param(token_init()(rngs.params(), (1, 1, width), jnp.float32)) for _ in range(2)
        )
        self.image_stream, self.text_stream = (CrossStack(spec, depth=depth, rngs=rngs) for _ in range(2))
        self.image_pooler, self.text_pooler = (Dense(width, width, exact=True, **common) for _ in range(2))
        self.drops, self.prefix, self.patches = bool(decoder), lengths.prefix, lengths.patches
        values = {**dataclasses.asdict(spec), "kind": "dense", "depth": depth, **decoder}
        decoder_spec, rest = BlockSpec.split(values)
        sizes = {"width": width, "prefix": self.prefix, "patches": self.patches}
        self.decoder = PatchDecoder(decoder_spec, **sizes, **rest, rngs=rngs) if decoder else None
        self.depth, self.tap, self.heads = depth, tap, spec.heads
        self._pre, self._eps, self._dtype = spec.pre_norm, spec.eps, spec.dtype

    def image_side(self, image_BSD: jax.Array, visible: Positions | None = None) -> Side:
        x_BSD = self.image_input(image_BSD)
        x_BSD = x_BSD + spread(self.image_type[...], x_BSD.shape, x_BSD.dtype)
        x_BSD, valid_BS = with_even_length(x_BSD, self.heads)
        return Side(x_BSD, valid_BS, visible, project=self._first_memory(self.text_stream))

    def text_side(self, text_BLD: jax.Array, valid_BL: jax.Array, visible: Positions | None = None) -> Side:
        """Masked words are not dropped: they are there as their tokens say."""
        x_BLD = self.text_input(text_BLD)
        x_BLD = x_BLD + spread(self.text_type[...], x_BLD.shape, x_BLD.dtype)
        return Side(x_BLD, First.of(valid_BL), project=self._first_memory(self.image_stream))

    def fuse(self, image: Side, text: Side, keys: Keys = (None, None)) -> Fused:
        return _CoFused(self, image, text, keys)

    def pair_image(self, image: Side, key: jax.Array | None = None) -> PairSide:
        return self._pair_side(self.image_stream, image, key)

    def pair_text(self, text: Side, key: jax.Array | None = None) -> PairSide:
        return self._pair_side(self.text_stream, text, key)

    def match(self, image: PairSide, text: PairSide, keys: Keys = (None, None)) -> jax.Array:
        """pair_PD, D twice the streams' width: tanh of a dense layer over the first position of either stream."""
        own = self._stream(self.image_stream, image.start_BRD, image.valid_BS, keys[0])
        other = self._stream(self.text_stream, text.start_BRD, text.valid_BS, keys[1])
        if self.depth == 1:
            image_PRD, text_PRD = self.after_start(own, text.memory), self.after_start(other, image.memory)
        else:
            own, other = self.body(self.depth - 1, own, other, image.memory, text.memory)
            first = jnp.zeros((own.x_BSD.shape[0], 1), jnp.int32)
            image_PRD, text_PRD = (self.layer(self.depth - 1, *one, first) for one in ((own, other), (other, own)))
        return self._pair(_normed(self.image_stream, image_PRD), _normed(self.text_stream, text_PRD))

    def attention(self, image: Side, text: Side, layer: int) -> Attention:
        """See `Attention`; negative layers count from the last."""
        layer, patches = layer_number(layer, self.depth), slice(self.prefix, self.prefix + self.patches)
        own, other = self._between(0, layer, *self.streams(image, text))
        image_BHSL, text_BHLS = self._weights(layer, own, other), self._weights(layer, other, own)
        return Attention(text_BHLS[..., patches], image_BHSL[:, :, patches])

    def probed(self, image: Side, text: Side, layer: int, added_BHLN: jax.Array) -> tuple[jax.Array, jax.Array]:
        """pair_BD, as `match` makes it, and text_BHLN; see `CrossFusion.probed`."""
        behind = image.sequence_BSD.shape[1] - self.prefix - self.patches
        added_BHLS = jnp.pad(added_BHLN, ((0, 0), (0, 0), (0, 0), (self.prefix, behind)))
        own, other = self._between(0, layer, *self.streams(image, text))
        text_BHLS = self._weights(layer, other, own)
        x_BSD, y_BLD = self.layer(layer, own, other), self.layer(layer, other, own, None, added_BHLS)
        own, other = self._between(layer + 1, self.depth, own._replace(x_BSD=x_BSD), other._replace(x_BSD=y_BLD))
        pair_BD = self._pair(_normed(self.image_stream, own.x_BSD), _normed(self.text_stream, other.x_BSD))
        return pair_BD, text_BHLS[..., self.prefix : self.prefix + self.patches]

    def standard(self, x_BSD: jax.Array) -> jax.Array:
        """x as a dense layer reads it that no norm stands before: that of post-norm blocks as it is."""
        if not self._pre:
            return x_BSD
        width = x_BSD.shape[-1]
        return primitives.layer_norm(x_BSD, jnp.ones(width), jnp.zeros(width), self._eps, self._dtype)

    def _pair(self, image_BRD: jax.Array, text_BRD: jax.Array) -> jax.Array:
        """Both streams' first positions as one vector, the text's before the picture's."""
        parts = (self.text_pooler, text_BRD), (self.image_pooler, image_BRD)
        return jnp.concatenate([jnp.tanh(pooler(x[:, 0].astype(jnp.float32))) for pooler, x in parts], axis=1)

    def _pair_side(self, stack: CrossStack, side: Side, key: jax.Array | None) -> PairSide:
        first = jnp.zeros((side.sequence_BSD.shape[0], 1), jnp.int32)
        return PairSide(stack.start(side.sequence_BSD, side.valid_BS, first, key), side.memory, side.valid_BS)

    def _first_memory(self, reader: CrossStack) -> Callable[[jax.Array, Valid], Memory]:
        """Makes the keys and values of the first layer, which depend on one modality alone."""

        def project(x_BSD: jax.Array, valid_BS: Valid) -> Memory:
            attention = reader.blocks.layer(0).cross_attention
            key_BTHK, value_BTHK = attention.project(self.standard(x_BSD))
            return Memory(key_BTHK[None], value_BTHK[None], valid_BS)

        return project

    def _stream(self, stack: CrossStack, x_BSD: jax.Array, valid_BS: Valid, key: jax.Array | None = None) -> _Stream:
        keys_A2 = None if key is None else jax.random.split(key, (self.depth, 2))
        return _Stream(stack, x_BSD, valid_BS, keys_A2)

    def streams(self, image: Side, text: Side, keys: Keys = (None, None)) -> tuple[_Stream, _Stream]:
        """Both streams before the first layer."""
        both = (self.image_stream, image, keys[0]), (self.text_stream, text, keys[1])
        own, other = (self._stream(stack, side.sequence_BSD, side.valid_BS, key) for stack, side, key in both)
        return own, other

    def body(
        self, stop: int, image: _Stream, text: _Stream, image_memory: Memory, text_memory: Memory
    ) -> tuple[_Stream, _Stream]:
        """Both streams behind the layers 0:stop, at least one, of which the first self-attention is done."""
        x_BSD, y_BLD = self.after_start(image, text_memory), self.after_start(text, image_memory)
        return self._between(1, stop, image._replace(x_BSD=x_BSD), text._replace(x_BSD=y_BLD))

    @jax.named_scope("fusion")
    def after_start(self, own: _Stream, memory: Memory) -> jax.Array:
        """What follows the self-attention of the first layer."""
        attend = lambda block, *arguments: block.attend_memory(*arguments)  # noqa: E731
        key = None if own.keys_A2 is None else own.keys_A2[0, 1]
        arguments = memory.key_ABTHK[0], memory.value_ABTHK[0], memory.valid_BT, key
        return own.stack.blocks.once(0, attend, own.x_BSD, *arguments)

    @jax.named_scope("fusion")
    def _between(self, start: int, stop: int, image: _Stream, text: _Stream) -> tuple[_Stream, _Stream]:
        """Both streams, before the layer `start`, behind the layers start:stop."""
        graphdef, text_state = nnx.split(text.stack.blocks.block)

        def both(image_block, streams, layer):
            (x_BSD, y_BLD), (text_state, image_keys, text_keys) = streams, layer
            x_valid, y_valid, text_block = image.valid_BS, text.valid_BS, nnx.merge(graphdef, text_state)
            new_BSD = self._apply(image_block, x_BSD, x_valid, y_BLD, y_valid, image_keys)
            return new_BSD, self._apply(text_block, y_BLD, y_valid, x_BSD, x_valid, text_keys)

        layers = text_state, image.keys_A2, text.keys_A2
        x_BSD, y_BLD = image.stack.blocks.scan(both, (image.x_BSD, text.x_BSD), layers, start=start, stop=stop)
        return image._replace(x_BSD=x_BSD), text._replace(x_BSD=y_BLD)

    @jax.named_scope("fusion")
    def layer(
        self,
        layer: int,
        own: _Stream,
        other: _Stream,
        read_BR: jax.Array | None = None,
        added_BHST: jax.Array | None = None,
    ) -> jax.Array:
        """One stream behind one layer, at the positions `read_BR`, all if None."""
        keys = None if own.keys_A2 is None else own.keys_A2[layer]
        arguments = own.x_BSD, own.valid_BS, other.x_BSD, other.valid_BS, keys, read_BR, added_BHST
        return own.stack.blocks.once(layer, self._apply, *arguments)

    def _apply(self, block, x_BSD, valid_BS, other_BTD, valid_BT, keys, read_BR=None, added_BHST=None) -> jax.Array:
        """A block of one stream over the other's state; `added_BHST` as in `blocks.base`."""
        self_key, memory_key = (None, None) if keys is None else keys
        memory = block.cross_attention.project(self.standard(other_BTD))
        x_BRD = block.attend_self(x_BSD, valid_BS, read_BR, self_key)
        added = () if added_BHST is None else (added_BHST,)
        return block.attend_memory(x_BRD, *memory, valid_BT, memory_key, *added)

    def _weights(self, layer: int, own: _Stream, other: _Stream) -> jax.Array:
        """weights_BHST over the other stream's positions in one layer, before which both are."""
        block = own.stack.blocks.layer(layer)
        key_BTHK, _ = block.cross_attention.project(self.standard(other.x_BSD))
        return block.memory_weights(block.attend_self(own.x_BSD, own.valid_BS), key_BTHK, other.valid_BS)


class _CoFused:
    """Reads words behind the last layer, and patches too unless some were left out: then behind the decoder."""

    def __init__(self, fusion: CoFusion, image: Side, text: Side, keys: Keys):
        self._fusion, self._image, self._text, self._keys = fusion, image, text, keys
        self._body = cache(self._run_body)  # both modalities may be read

    def text(self, read_BR: jax.Array | None = None) -> jax.Array:
        stack = self._fusion.text_stream
        return _normed(stack, self._behind(self._fusion.depth, 1, read_BR))

    def image(self, read_BR: jax.Array | None = None) -> jax.Array:
        """Of a picture whose hidden patches were left out all patches, and nothing that stands before them."""
        fusion, image = self._fusion, self._image
        dropped = image.visible is not None
        x_BRD = self._behind(fusion.tap if dropped else fusion.depth, 0, None if dropped else read_BR)
        if image.valid_BS is not None and (dropped or read_BR is None):
            x_BRD = x_BRD[:, : image.valid_BS.count]
        if not dropped:
            return _normed(fusion.image_stream, x_BRD)
        patches_BR = None if read_BR is None else read_BR - fusion.prefix
        return fusion.decoder(fusion.standard(x_BRD), image.visible, patches_BR, self._keys[0])

    def _behind(self, layers: int, which: int, read_BR: jax.Array | None) -> jax.Array:
        """The stream of the picture (0) or the words (1) behind so many layers, in the last of which it is alone."""
        fusion, sides = self._fusion, (self._image, self._text)
        if layers == 0:
            return take(sides[which].sequence_BSD, read_BR)
        if layers == 1:
            return fusion.after_start(self._started(which, read_BR), sides[1 - which].memory)
        both = self._body(layers - 1)
        return fusion.layer(layers - 1, both[which], both[1 - which], read_BR)

    def _run_body(self, stop: int) -> tuple[_Stream, _Stream]:
        started = self._started(0, None), self._started(1, None)
        return self._fusion.body(stop, *started, self._image.memory, self._text.memory)

    def _started(self, which: int, read_BR: jax.Array | None) -> _Stream:
        """A stream behind its first self-attention."""
        stream = self._fusion.streams(self._image, self._text, self._keys)[which]
        key = None if stream.keys_A2 is None else stream.keys_A2[0, 0]
        return stream._replace(x_BSD=stream.stack.start(stream.x_BSD, stream.valid_BS, read_BR, key))


def _normed(stack: CrossStack, x_BSD: jax.Array) -> jax.Array:
    """A stream behind its last layer, by the norm that stands there with pre-norm blocks."""
    return x_BSD if stack.norm is None else stack.norm(x_BSD)
