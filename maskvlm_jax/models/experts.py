"""One stream over both modalities whose feed-forward layers are experts: EVE (Chen et al. 2024, arXiv 2308.11971).

A masked picture is told by its visible patches alone, and a decoder puts its hidden ones in their places; masked words
are tokens as they stand. A joint sequence is the one of `models.joint`: words first, then patches.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.block import BlockSpec, RoutedSpec
from maskvlm_jax.models.fusion import Fused, Keys, Lengths, Side
from maskvlm_jax.models.joint import JointStack, OneStream, join, shown
from maskvlm_jax.models.layers import Dense, LayerNorm, Positions, restore, token_init
from maskvlm_jax.models.positions import grid_waves
from maskvlm_jax.models.primitives import spread
from maskvlm_jax.models.stack import Stack, layer_keys


class ExpertStack(nnx.Module):
    """Blocks with a feed-forward layer a modality, above them blocks of routed experts; a norm before and behind.

    Args:
        spec: of the blocks; its kind has the classes `ModalityBlock` and `RoutedBlock`.
        depth: of all blocks; layers: routed ones, the last of them.
        lower: feed-forward layers of the blocks below: "modality", one for each, or "shared", one for both.
        count, top, mlp_ratio: experts of a routed block, how many a position goes through, and how many times as wide
            as the stream the hidden layer of each is.
    """

    def __init__(
        self,
        spec: BlockSpec,
        *,
        depth: int,
        layers: int,
        lower: str,
        count: int,
        top: int,
        mlp_ratio: int,
        rngs: nnx.Rngs,
    ):
        self.by_modality, self.depth, self.below, self.heads = lower == "modality", depth, depth - layers, spec.heads
        routed = RoutedSpec(**dataclasses.asdict(spec), experts=count, top=top, expert_ratio=mlp_ratio)
        below = spec if self.by_modality else dataclasses.replace(spec, kind="dense")
        part = "ModalityBlock" if self.by_modality else "Block"
        self.lower_blocks = Stack(below, self.below, part=part, rngs=rngs)
        self.routed_blocks = Stack(routed, layers, part="RoutedBlock", rngs=rngs)
        norm = {"eps": spec.eps, "dtype": spec.dtype}
        self.norm_before = LayerNorm(spec.width, **norm)
        self.norm = LayerNorm(spec.width, **norm) if spec.pre_norm else None

    @jax.named_scope("fusion")
    def body(self, x_BSD: jax.Array, valid_BS: jax.Array, words: int, key: jax.Array | None = None) -> jax.Array:
        """All blocks but the last, at every position; the first `words` are words."""
        return self._between(0, self.depth - 1, self.norm_before(x_BSD), valid_BS, words, key)

    @jax.named_scope("fusion")
    def last(
        self,
        x_BSD: jax.Array,
        valid_BS: jax.Array,
        words: int,
        read_BR: jax.Array,
        read_words: int,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The last block at the positions `read_BR`, of which the first `read_words` are words."""
        stack, layer = self._place(self.depth - 1)
        key = None if key is None else layer_keys(key, self.depth)[-1]
        x_BRD = stack.once(layer, self._apply(stack, words, read_words), x_BSD, valid_BS, key, read_BR)
        return x_BRD if self.norm is None else self.norm(x_BRD)

    @jax.named_scope("fusion")
    def attention_weights(self, x_BSD: jax.Array, valid_BS: jax.Array, layer: int, *, words: int) -> jax.Array:
        """weights_BHSS: how much each position attends to each other one in one layer, without dropout."""
        x_BSD = self._between(0, layer, self.norm_before(x_BSD), valid_BS, words)
        stack, layer = self._place(layer)
        return stack.layer(layer).attention_weights(x_BSD, valid_BS)

    @jax.named_scope("fusion")
    def probed(
        self, x_BSD: jax.Array, valid_BS: jax.Array, layer: int, added_BHSS: jax.Array, *, words: int
    ) -> tuple[jax.Array, jax.Array]:
        """As `JointStack.probed`."""
        x_BSD = self._between(0, layer, self.norm_before(x_BSD), valid_BS, words)
        stack, place = self._place(layer)
        weights_BHSS = stack.layer(place).attention_weights(x_BSD, valid_BS)
        apply = self._apply(stack, words, words)
        x_BSD = stack.once(place, apply, x_BSD, valid_BS, None, None, added_BHSS)
        x_BSD = self._between(layer + 1, self.depth, x_BSD, valid_BS, words)
        return x_BSD if self.norm is None else self.norm(x_BSD), weights_BHSS

    def __call__(self, x_BSD, valid_BS, read_BR, key=None, *, words: int) -> jax.Array:
        """All blocks, read at the positions `read_BR`, which are words."""
        body_BSD = self.body(x_BSD, valid_BS, words, key)
        return self.last(body_BSD, valid_BS, words, read_BR, read_BR.shape[1], key)

    def _between(
        self,
        start: int,
        stop: int,
        x_BSD: jax.Array,
        valid_BS: jax.Array,
        words: int,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The blocks start:stop."""
        keys = layer_keys(key, self.depth)
        for stack, first in ((self.lower_blocks, 0), (self.routed_blocks, self.below)):
            apply = self._apply(stack, words, words)
            own = None if keys is None else keys[first : first + stack.depth]
            run = lambda block, x, key, apply=apply: apply(block, x, valid_BS, key)  # noqa: E731
            x_BSD = stack.scan(run, x_BSD, own, start=max(start - first, 0), stop=min(stop - first, stack.depth))
        return x_BSD

    def _place(self, layer: int) -> tuple[Stack, int]:
        """The stack that has a layer, and its number there."""
        lower = layer < self.below
        return (self.lower_blocks, layer) if lower else (self.routed_blocks, layer - self.below)

    def _apply(self, stack: Stack, words: int, read_words: int) -> Callable:
        """Calls a block of a stack, and tells one that asks where words end."""
        plain = stack is self.lower_blocks and not self.by_modality
        told = {} if plain else {"words": words, "read_words": read_words}
        return lambda block, *arguments: block(*arguments, **told)


class ExpertFusion(OneStream):
    """A single stream of experts, and a plain Transformer that rebuilds pictures from their fused visible patches.

    Args:
        lengths: of the sequences that are fused.
        spec, depth, experts: of the `ExpertStack`; `experts` are its other arguments.
        decoder: values of the decoder's spec and depth that differ from the stream's.
    """

    drops = True
    encoder: ExpertStack

    def __init__(
        self,
        spec: BlockSpec,
        lengths: Lengths,
        *,
        depth: int,
        experts: dict[str, Any],
        decoder: dict[str, Any],
        rngs: nnx.Rngs,
    ):
        values = {**dataclasses.asdict(spec), "kind": "dense", "depth": depth, **decoder}
        decoder_spec, rest = BlockSpec.split(values)
        width, wide = spec.width, decoder_spec.width
        common = {"init_std": spec.init_std, "dtype": spec.dtype, "rngs": rngs}
        self.encoder = ExpertStack(spec, depth=depth, **experts, rngs=rngs)
        self.to_decoder = Dense(width, wide, **common)
        self.decoder = JointStack(decoder_spec, **rest, rngs=rngs)
        self.from_decoder = Dense(wide, width, **common)

        def tokens(*shape: int) -> nnx.Param:
            return nnx.Param(token_init()(rngs.params(), shape, jnp.float32))

        self.image_type, self.text_type = tokens(1, 1, width), tokens(1, 1, width)
        self.image_slots = nnx.Dict(mask_token=tokens(1, 1, wide), position=tokens(1, lengths.patches, wide))
        if spec.init_std == 0:
            # Mask tokens differ by their positions alone: those start as large as what is encoded.
            side = round(lengths.patches**0.5)
            self.image_slots["position"][...] = jnp.asarray(grid_waves(side, wide)[None])
        self.prefix, self.patches = lengths.prefix, lengths.patches

    def image_side(self, image_BSD: jax.Array, visible: Positions | None = None) -> Side:
        image_BND = image_BSD[:, self.prefix :]
        return Side(image_BND + spread(self.image_type[...], image_BND.shape, image_BND.dtype), None, visible)

    def text_side(self, text_BLD: jax.Array, valid_BL: jax.Array, visible: Positions | None = None) -> Side:
        """Masked words are not dropped: they are there as mask tokens."""
        return Side(text_BLD + spread(self.text_type[...], text_BLD.shape, text_BLD.dtype), valid_BL)

    def fuse(self, image: Side, text: Side, keys: Keys = (None, None)) -> Fused:
        return _ExpertFused(self, image, text, keys)

    def decode(
        self, encoded_BUD: jax.Array, visible: Positions, read_BR: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        """The patches `read_BR`, all if None, from fused visible ones."""
        slots, encoded_BUD = self.image_slots, self.to_decoder(encoded_BUD)
        x_BND = restore(encoded_BUD, visible, self.patches, slots["mask_token"][...])
        x_BND = x_BND + spread(slots["position"][...], x_BND.shape, x_BND.dtype)
        body_BND = self.decoder.body(x_BND, None, key)
        return self.from_decoder(self.decoder.last(body_BND, None, read_BR, key))

    def _told(self, words: int) -> dict[str, int]:
        return {"words": words}


class _ExpertFused:
    """Reads the stream by the positions of each modality; patches of a masked picture are read behind the decoder."""

    def __init__(self, fusion: ExpertFusion, image: Side, text: Side, keys: Keys):
        self._fusion, self._keys, self._visible = fusion, keys, image.visible
        patch_BND, patch_valid_BN = shown(image)
        self._words, self._shown = text.sequence_BSD.shape[1], patch_BND.shape[1]
        x_BSD, self._valid_BS = join(text.sequence_BSD, text.valid_BS, patch_BND, patch_valid_BN)
        self._body_BSD = fusion.encoder.body(x_BSD, self._valid_BS, self._words, keys[0])

    def text(self, read_BR: jax.Array | None = None) -> jax.Array:
        read_BR = self._all(0, self._words) if read_BR is None else read_BR
        return self._read(read_BR, read_BR.shape[1])

    def image(self, read_BR: jax.Array | None = None) -> jax.Array:
        """Patches only: positions before the first patch are not in the joint sequence."""
        patches_BR = None if read_BR is None else read_BR - self._fusion.prefix
        if self._visible is None and patches_BR is not None:
            return self._read(patches_BR + self._words, 0)
        encoded_BUD = self._read(self._all(self._words, self._shown), 0)
        if self._visible is None:
            return encoded_BUD
        return self._fusion.decode(encoded_BUD, self._visible, patches_BR, self._keys[1])

    def _read(self, ids_BR: jax.Array, read_words: int) -> jax.Array:
        encoder = self._fusion.encoder
        return encoder.last(self._body_BSD, self._valid_BS, self._words, ids_BR, read_words, self._keys[0])

    def _all(self, start: int, count: int) -> jax.Array:
        return jnp.broadcast_to(start + jnp.arange(count), (self._body_BSD.shape[0], count))
