"""One stream over both modalities: merged fusion (MAMO), single stream (MLIM), masked autoencoder (M3AE).

A joint sequence is the caption followed by the picture's patches: [start token, words, end token | patches]. The class
token and others that an image encoder puts before its patches stay out of it; a pair is read at the start token.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.block import BlockSpec
from maskvlm_jax.models.fusion import Attention, Fused, Keys, Lengths, PairSide, Side, layer_number
from maskvlm_jax.models.layers import Dense, LayerNorm, Positions, restore, take, token_init
from maskvlm_jax.models.primitives import spread
from maskvlm_jax.models.stack import Stack, layer_keys


class JointStack(nnx.Module):
    """Self-attention blocks over a joint sequence, the last one at the positions that are read."""

    def __init__(self, spec: BlockSpec, *, depth: int, rngs: nnx.Rngs):
        self.blocks = Stack(spec, depth, rngs=rngs)
        self.norm = LayerNorm(spec.width, eps=spec.eps, dtype=spec.dtype) if spec.pre_norm else None
        self.depth, self.heads = depth, spec.heads

    @jax.named_scope("fusion")
    def body(self, x_BSD: jax.Array, valid_BS: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """All blocks but the last, at every position."""
        keys = layer_keys(key, self.blocks.depth)
        run = lambda block, x, key: block(x, valid_BS, key)  # noqa: E731
        return self.blocks.scan(run, x_BSD, keys, stop=self.blocks.depth - 1)

    @jax.named_scope("fusion")
    def last(
        self, x_BSD: jax.Array, valid_BS: jax.Array, read_BR: jax.Array | None = None, key: jax.Array | None = None
    ) -> jax.Array:
        """The last block at the positions `read_BR`, all if None."""
        last = self.blocks.depth - 1
        key = None if key is None else layer_keys(key, self.blocks.depth)[last]
        x_BRD = self.blocks.once(last, lambda block, *arguments: block(*arguments), x_BSD, valid_BS, key, read_BR)
        return x_BRD if self.norm is None else self.norm(x_BRD)

    @jax.named_scope("fusion")
    def attention_weights(self, x_BSD: jax.Array, valid_BS: jax.Array, layer: int) -> jax.Array:
        """weights_BHSS: how much each position attends to each other one in one layer, without dropout."""
        x_BSD = self.blocks.scan(lambda block, x, _: block(x, valid_BS), x_BSD, stop=layer)
        return self.blocks.layer(layer).attention_weights(x_BSD, valid_BS)

    @jax.named_scope("fusion")
    def probed(
        self, x_BSD: jax.Array, valid_BS: jax.Array, layer: int, added_BHSS: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Every position behind all blocks, and the weights in one layer, weights_BHSS, to which `added_BHSS` is added:
        zeros, by which what follows can be differentiated. Without dropout."""
        run = lambda block, x, _: block(x, valid_BS)  # noqa: E731
        x_BSD = self.blocks.scan(run, x_BSD, stop=layer)
        weights_BHSS = self.blocks.layer(layer).attention_weights(x_BSD, valid_BS)
        probe = lambda block, x, added: block(x, valid_BS, added_BHRS=added)  # noqa: E731
        x_BSD = self.blocks.scan(run, self.blocks.once(layer, probe, x_BSD, added_BHSS), start=layer + 1)
        return x_BSD if self.norm is None else self.norm(x_BSD), weights_BHSS

    def __call__(self, x_BSD, valid_BS, read_BR=None, key=None) -> jax.Array:
        return self.last(self.body(x_BSD, valid_BS, key), valid_BS, read_BR, key)


class OneStream(nnx.Module):
    """Pairs matched by one stream, `encoder`, over the whole caption and picture."""

    encoder: JointStack
    pair_vectors = 1

    @property
    def heads(self) -> int:
        return self.encoder.heads

    def pair_image(self, image: Side, key: jax.Array | None = None) -> PairSide:
        return PairSide(image.sequence_BSD, None, image.valid_BS)

    def pair_text(self, text: Side, key: jax.Array | None = None) -> PairSide:
        return PairSide(text.sequence_BSD, None, text.valid_BS)

    def attention(self, image: Side, text: Side, layer: int) -> Attention:
        x_BSD, valid_BS = join(text.sequence_BSD, text.valid_BS, image.sequence_BSD, image.valid_BS)
        length, layer = text.sequence_BSD.shape[1], layer_number(layer, self.encoder.depth)
        weights_BHSS = self.encoder.attention_weights(x_BSD, valid_BS, layer, **self._told(length))
        return Attention(weights_BHSS[:, :, :length, length:], weights_BHSS[:, :, length:, :length])

    def match(self, image: PairSide, text: PairSide, keys: Keys = (None, None)) -> jax.Array:
        """pair_PD: the encoder's output at the start token, nothing hidden."""
        x_PSD, valid_PS = join(text.start_BRD, text.valid_BS, image.start_BRD, image.valid_BS)
        first, told = jnp.zeros((x_PSD.shape[0], 1), jnp.int32), self._told(text.start_BRD.shape[1])
        return self.encoder(x_PSD, valid_PS, first, keys[0], **told)[:, 0].astype(jnp.float32)

    def probed(self, image: Side, text: Side, layer: int, added_BHLN: jax.Array) -> tuple[jax.Array, jax.Array]:
        """pair_BD, as `match` makes it, and text_BHLN; see `CrossFusion.probed`."""
        x_BSD, valid_BS = join(text.sequence_BSD, text.valid_BS, image.sequence_BSD, image.valid_BS)
        length, patches = text.sequence_BSD.shape[1], image.sequence_BSD.shape[1]
        added_BHSS = jnp.pad(added_BHLN, ((0, 0), (0, 0), (0, patches), (length, 0)))
        out_BSD, weights_BHSS = self.encoder.probed(x_BSD, valid_BS, layer, added_BHSS, **self._told(length))
        return out_BSD[:, 0].astype(jnp.float32), weights_BHSS[:, :, :length, length:]

    def _told(self, words: int) -> dict[str, int]:
        """What the stream must be told of a joint sequence whose first `words` positions are words."""
        return {}


class JointFusion(OneStream):
    """Merged self-attention over words and patches (MAMO, arXiv 2210.04183; MLIM, arXiv 2109.12178).

    With encoders of depth 0 this is a single stream: BERT over embeddings of words and of patches.

    Args:
        lengths: of the sequences that are fused.
        spec, depth: of the `JointStack`.
    """

    drops = False

    def __init__(self, spec: BlockSpec, lengths: Lengths, *, depth: int, rngs: nnx.Rngs):
        self.encoder = JointStack(spec, depth=depth, rngs=rngs)
        self.prefix = lengths.prefix

    def image_side(self, image_BSD: jax.Array, visible: Positions | None = None) -> Side:
        return Side(image_BSD[:, self.prefix :])

    def text_side(self, text_BLD: jax.Array, valid_BL: jax.Array, visible: Positions | None = None) -> Side:
        return Side(text_BLD, valid_BL)

    def fuse(self, image: Side, text: Side, keys: Keys = (None, None)) -> Fused:
        x_BSD, valid_BS = join(text.sequence_BSD, text.valid_BS, image.sequence_BSD, image.valid_BS)
        body_BSD = self.encoder.body(x_BSD, valid_BS, keys[0])

        def read(ids_BR):
            return self.encoder.last(body_BSD, valid_BS, ids_BR, keys[0])

        return _JointFused(read, text.sequence_BSD.shape, image.sequence_BSD.shape[1], self.prefix)


class AutoencoderFusion(OneStream):
    """A masked autoencoder over both modalities (M3AE, Geng et al. 2022, arXiv 2205.14204).

    One encoder sees the visible words and patches only; one decoder sees its output at their places and a mask token
    of the modality at all others, with positions and modality embeddings of its own. Pairs are matched by the encoder
    alone.

    Args:
        lengths: of the sequences that are fused.
        spec, depth: of the encoder.
        decoder: values of the decoder's spec and depth that differ from the encoder's.
    """

    drops = True

    def __init__(self, spec: BlockSpec, lengths: Lengths, *, depth: int, decoder: dict[str, Any], rngs: nnx.Rngs):
        decoder_spec, rest = BlockSpec.split({**dataclasses.asdict(spec), "depth": depth, **decoder})
        width, wide = spec.width, decoder_spec.width
        common = {"init_std": spec.init_std, "dtype": spec.dtype, "rngs": rngs}
        self.encoder = JointStack(spec, depth=depth, rngs=rngs)
        self.to_decoder = Dense(width, wide, **common)
        self.decoder = JointStack(decoder_spec, **rest, rngs=rngs)
        self.from_decoder = Dense(wide, width, **common)

        def tokens(*shape: int) -> nnx.Param:
            return nnx.Param(token_init()(rngs.params(), shape, jnp.float32))

        self.image_type, self.text_type = tokens(1, 1, width), tokens(1, 1, width)
        self.image_slots = nnx.Dict(mask_token=tokens(1, 1, wide), position=tokens(1, lengths.patches, wide))
        self.text_slots = nnx.Dict(mask_token=tokens(1, 1, wide), position=tokens(1, lengths.words, wide))
        self.prefix = lengths.prefix

    def image_side(self, image_BSD: jax.Array, visible: Positions | None = None) -> Side:
        image_BND = image_BSD[:, self.prefix :]
        return Side(image_BND + spread(self.image_type[...], image_BND.shape, image_BND.dtype), None, visible)

    def text_side(self, text_BLD: jax.Array, valid_BL: jax.Array, visible: Positions | None = None) -> Side:
        return Side(text_BLD + spread(self.text_type[...], text_BLD.shape, text_BLD.dtype), valid_BL, visible)

    def fuse(self, image: Side, text: Side, keys: Keys = (None, None)) -> Fused:
        shown_text, shown_image = shown(text), shown(image)
        encoded_BUD = self.to_decoder(self.encoder(*join(*shown_text, *shown_image), None, keys[0]))
        cut = shown_text[0].shape[1]
        text_BLD = self._slots(self.text_slots, encoded_BUD[:, :cut], text)
        image_BND = self._slots(self.image_slots, encoded_BUD[:, cut:], image)
        x_BSD, valid_BS = join(text_BLD, text.valid_BS, image_BND, image.valid_BS)
        body_BSD = self.decoder.body(x_BSD, valid_BS, keys[1])

        def read(ids_BR):
            return self.from_decoder(self.decoder.last(body_BSD, valid_BS, ids_BR, keys[1]))

        return _JointFused(read, text.sequence_BSD.shape, image.sequence_BSD.shape[1], self.prefix)

    def _slots(self, slots: nnx.Dict, encoded_BUD: jax.Array, side: Side) -> jax.Array:
        """The decoder's input: encoded positions at their places, the mask token at the others."""
        full_BSD = encoded_BUD
        if side.visible is not None:
            length = side.sequence_BSD.shape[1]
            full_BSD = restore(encoded_BUD, side.visible, length, slots["mask_token"][...])
        return full_BSD + spread(slots["position"][...][:, : full_BSD.shape[1]], full_BSD.shape, full_BSD.dtype)


def join(
    text_BLD: jax.Array, text_valid_BL: jax.Array, image_BND: jax.Array, image_valid_BN: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The joint sequence and its real positions."""
    if image_valid_BN is None:
        image_valid_BN = jnp.ones(image_BND.shape[:2], bool)
    return jnp.concatenate([text_BLD, image_BND], axis=1), jnp.concatenate([text_valid_BL, image_valid_BN], axis=1)


def shown(side: Side) -> tuple[jax.Array, jax.Array | None]:
    """The visible positions of a side, and which of them are real."""
    if side.visible is None:
        return side.sequence_BSD, side.valid_BS
    return take(side.sequence_BSD, side.visible.ids_BM), side.visible.valid_BM


class _JointFused:
    """Reads a joint sequence by the positions of each modality."""

    def __init__(self, read, text_shape: tuple[int, ...], patches: int, prefix: int):
        self._read, self._patches, self._prefix = read, patches, prefix
        self._rows, self._length = text_shape[:2]

    def text(self, read_BR: jax.Array | None = None) -> jax.Array:
        return self._read(self._all(0, self._length) if read_BR is None else read_BR)

    def image(self, read_BR: jax.Array | None = None) -> jax.Array:
        """Patches only: positions before the first patch are not in the joint sequence."""
        if read_BR is None:
            return self._read(self._all(self._length, self._patches))
        return self._read(read_BR - self._prefix + self._length)

    def _all(self, start: int, count: int) -> jax.Array:
        return jnp.broadcast_to(start + jnp.arange(count), (self._rows, count))
