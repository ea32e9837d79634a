"""Cross-modality encoders and decoder of MaskVLM (Kwon et al. 2023, arXiv 2208.02131, Sec. 3.1 and Fig. 2-3).

A stream of one modality reads the *unimodal* output of the other: the same memory in every block, never co-updated.
Costs that would be thrown away are not spent, and no number changes by it:

* the memory is projected to keys and values once (`CrossStack.project`), however many streams and pairs read it;
* the first self-attention does not see the other modality, so it runs once an input, not once a pair (`start`);
* the last block is computed only at the positions that are read (`read_BR`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from flax import nnx

from maskvlm_jax.models.attention import Valid
from maskvlm_jax.models.block import BlockSpec
from maskvlm_jax.models.layers import LayerNorm, interleave, take_rows
from maskvlm_jax.models.stack import Stack, layer_keys


class Memory(NamedTuple):
    """Keys and values of a sequence for every layer of a `CrossStack`, and which of its positions are real."""

    key_ABTHK: jax.Array
    value_ABTHK: jax.Array
    valid_BT: Valid

    @staticmethod
    def interleave(memories: Sequence["Memory"]) -> "Memory":
        """Several memories of as many examples each, example by example."""
        key, value = (interleave(parts, axis=1) for parts in zip(*(memory[:2] for memory in memories), strict=True))
        return Memory(key, value, interleave_valid([memory.valid_BT for memory in memories]))

    def gather(self, ids_P: jax.Array, shares: int = 1) -> "Memory":
        """The memories of the examples `ids_P`; `shares` as in `take_rows`."""
        key, value = (take_rows(x, ids_P, 1, shares) for x in self[:2])
        return Memory(key, value, take_valid(self.valid_BT, ids_P, shares))


def interleave_valid(parts: Sequence[Valid]) -> Valid:
    """Which positions are real of several sides, example by example."""
    return jax.tree.map(lambda *arrays: interleave(arrays), *parts)


def take_valid(valid_BS: Valid, ids_P: jax.Array, shares: int = 1) -> Valid:
    """Which positions are real of the examples `ids_P`; `shares` as in `take_rows`."""
    return jax.tree.map(lambda array: take_rows(array, ids_P, 0, shares), valid_BS)


class CrossStack(nnx.Module):
    """`depth` cross blocks over one memory: the cross-modality encoders g_im, g_txt and the image decoder g_im^de.

    Behind pre-norm blocks stands one more norm.
    """

    def __init__(self, spec: BlockSpec, *, depth: int, rngs: nnx.Rngs):
        self.blocks = Stack(spec, depth, part="CrossBlock", rngs=rngs)
        self.norm = LayerNorm(spec.width, eps=spec.eps, dtype=spec.dtype) if spec.pre_norm else None
        self.depth, self.heads = depth, spec.heads

    @jax.named_scope("fusion")
    def project(self, context_BTD: jax.Array, valid_BT: Valid = None) -> Memory:
        """Keys and values of the other modality for every layer."""
        key, value = self.blocks.map(lambda block: block.cross_attention.project(context_BTD))
        return Memory(key, value, valid_BT)

    @jax.named_scope("fusion")
    def start(self, x_BSD, valid_BS=None, read_BR=None, key=None) -> jax.Array:
        """The first block's self-attention: the part of the stack that does not depend on the memory."""
        read_BR = read_BR if self.depth == 1 else None
        attend = lambda block, *arguments: block.attend_self(*arguments)  # noqa: E731
        return self.blocks.once(0, attend, x_BSD, valid_BS, read_BR, self._keys(key)[0])

    @jax.named_scope("fusion")
    def finish(self, x_BSD, memory: Memory, valid_BS=None, read_BR=None, key=None) -> jax.Array:
        """All that follows `start`; returns the positions `read_BR`, (B, R, D), all if None."""
        keys, last = self._keys(key), self.depth - 1

        def layer_memory(i):
            return Memory(memory.key_ABTHK[i], memory.value_ABTHK[i], memory.valid_BT)

        def apply(block, x, layer):
            key_BTHK, value_BTHK, key = layer
            self_key, cross_key = (None, None) if key is None else jax.random.split(key)
            x = block.attend_self(x, valid_BS, key=self_key)
            return block.attend_memory(x, key_BTHK, value_BTHK, memory.valid_BT, cross_key)

        attend = lambda block, x, memory, key: block.attend_memory(x, *memory, key)  # noqa: E731
        x_BSD = self.blocks.once(0, attend, x_BSD, layer_memory(0), keys[1])
        if last > 0:
            middle_keys = layer_keys(keys[2], self.depth)
            x_BSD = self.blocks.scan(
                apply, x_BSD, (memory.key_ABTHK, memory.value_ABTHK, middle_keys), start=1, stop=last
            )

            def end(block, x, valid, read, memory, self_key, cross_key):
                return block.attend_memory(block.attend_self(x, valid, read, self_key), *memory, cross_key)

            x_BSD = self.blocks.once(last, end, x_BSD, valid_BS, read_BR, layer_memory(last), *keys[3:])
        return x_BSD if self.norm is None else self.norm(x_BSD)

    @jax.named_scope("fusion")
    def memory_weights(self, x_BSD, memory: Memory, valid_BS, layer: int) -> jax.Array:
        """weights_BHST: how much each position of x attends to each of the memory in one layer, without dropout."""

        def attended(block, x_BSD):
            return block.attend_self(x_BSD, valid_BS)

        x_BSD = self.blocks.once(0, attended, x_BSD)
        for i in range(layer):
            arguments = x_BSD, memory.key_ABTHK[i], memory.value_ABTHK[i], memory.valid_BT
            x_BSD = self.blocks.once(i, lambda block, *arguments: block.attend_memory(*arguments), *arguments)
            x_BSD = self.blocks.once(i + 1, attended, x_BSD)
        return self.blocks.layer(layer).memory_weights(x_BSD, memory.key_ABTHK[layer], memory.valid_BT)

    @jax.named_scope("fusion")
    def probed(self, x_BSD, memory: Memory, valid_BS, layer: int, added_BHST) -> tuple[jax.Array, jax.Array]:
        """Every position of x behind all blocks, and the weights over the memory in one layer, weights_BHST, to which
        `added_BHST` is added: zeros, by which what follows can be differentiated. Without dropout."""
        for i in range(self.depth):
            x_BSD = self.blocks.once(i, lambda block, x_BSD: block.attend_self(x_BSD, valid_BS), x_BSD)
            arguments = memory.key_ABTHK[i], memory.value_ABTHK[i], memory.valid_BT
            if i == layer:
                weights_BHST = self.blocks.layer(i).memory_weights(x_BSD, memory.key_ABTHK[i], memory.valid_BT)
                arguments += None, added_BHST
            x_BSD = self.blocks.once(i, lambda block, *arguments: block.attend_memory(*arguments), x_BSD, *arguments)
        return x_BSD if self.norm is None else self.norm(x_BSD), weights_BHST

    def __call__(self, x_BSD, memory: Memory, valid_BS=None, read_BR=None, key=None) -> jax.Array:
        """Runs x through every block; returns the positions `read_BR` only, all if None."""
        x_BSD = self.start(x_BSD, valid_BS, read_BR, key)
        return self.finish(x_BSD, memory, valid_BS, read_BR, key)

    def _keys(self, key):
        return [None] * 5 if key is None else list(jax.random.split(key, 5))
