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

from maskvlm_jax.models.layers import (
    Attention,
    Dtype,
    FeedForward,
    LayerNorm,
    Valid,
    dropout,
    interleave,
    take,
    take_rows,
)
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


class CrossBlock(nnx.Module):
    """Self-attention, attention over the other modality, feed-forward, each with a residual (Fig. 3b)."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        mlp_ratio: int = 4,
        norm: str = "post",
        eps: float = 1e-5,
        dropout: float = 0.0,
        init_std: float = 0.02,
        dtype: Dtype = "float32",
        rngs: nnx.Rngs,
    ):
        common = {"init_std": init_std, "dtype": dtype, "rngs": rngs}
        self.self_attention = Attention(width, heads=heads, **common)
        self.cross_attention = Attention(width, heads=heads, **common)
        self.feed_forward = FeedForward(width, ratio=mlp_ratio, **common)
        self.norm1 = LayerNorm(width, eps=eps, dtype=dtype)
        self.norm2 = LayerNorm(width, eps=eps, dtype=dtype)
        self.norm3 = LayerNorm(width, eps=eps, dtype=dtype)
        self.pre, self.dropout = norm == "pre", dropout

    def attend_self(self, x_BSD, valid_BS=None, read_BR=None, key=None) -> jax.Array:
        """First sub-block, computed at the positions `read_BR` (all where None)."""
        y_BSD = self.norm1(x_BSD) if self.pre else x_BSD
        attended_BRD = self.self_attention.to_itself(y_BSD, valid_BS, read_BR)
        x_BRD = take(x_BSD, read_BR) + dropout(attended_BRD, self.dropout, key)
        return x_BRD if self.pre else self.norm1(x_BRD)

    def attend_memory(self, x_BSD, memory: Memory, key=None) -> jax.Array:
        """Second and third sub-block; `memory` is this layer's: keys and values without the layer axis."""
        key2, key3 = (None, None) if key is None else jax.random.split(key)
        y_BSD = self.norm2(x_BSD) if self.pre else x_BSD
        x_BSD = x_BSD + dropout(self.cross_attention(y_BSD, *memory), self.dropout, key2)
        x_BSD = x_BSD if self.pre else self.norm2(x_BSD)
        y_BSD = self.norm3(x_BSD) if self.pre else x_BSD
        x_BSD = x_BSD + dropout(self.feed_forward(y_BSD), self.dropout, key3)
        return x_BSD if self.pre else self.norm3(x_BSD)


class CrossStack(nnx.Module):
    """`depth` cross blocks over one memory: the cross-modality encoders g_im, g_txt and the image decoder g_im^de."""

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: int,
        norm: str,
        dropout: float,
        init_std: float,
        remat: str,
        unroll: bool,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        block = {
            "heads": heads,
            "mlp_ratio": mlp_ratio,
            "norm": norm,
            "dropout": dropout,
            "init_std": init_std,
            "dtype": dtype,
        }
        self.blocks = Stack(
            lambda rngs: CrossBlock(width, **block, rngs=rngs), depth, remat=remat, unroll=unroll, rngs=rngs
        )
        self.norm = LayerNorm(width, eps=1e-5, dtype=dtype) if norm == "pre" else None
        self.depth, self.heads = depth, heads

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
        """All that follows `start`; returns the positions `read_BR`, (B, R, D), all where None."""
        keys, last = self._keys(key), self.depth - 1

        def layer_memory(i):
            return Memory(memory.key_ABTHK[i], memory.value_ABTHK[i], memory.valid_BT)

        def apply(block, x, layer):
            key_BTHK, value_BTHK, key = layer
            self_key, cross_key = (None, None) if key is None else jax.random.split(key)
            x = block.attend_self(x, valid_BS, key=self_key)
            return block.attend_memory(x, Memory(key_BTHK, value_BTHK, memory.valid_BT), cross_key)

        attend = lambda block, *arguments: block.attend_memory(*arguments)  # noqa: E731
        x_BSD = self.blocks.once(0, attend, x_BSD, layer_memory(0), keys[1])
        if last > 0:
            middle_keys = layer_keys(keys[2], self.depth)
            x_BSD = self.blocks.scan(
                apply, x_BSD, (memory.key_ABTHK, memory.value_ABTHK, middle_keys), start=1, stop=last
            )

            def end(block, x, valid, read, memory, self_key, cross_key):
                return block.attend_memory(block.attend_self(x, valid, read, self_key), memory, cross_key)

            x_BSD = self.blocks.once(last, end, x_BSD, valid_BS, read_BR, layer_memory(last), *keys[3:])
        return x_BSD if self.norm is None else self.norm(x_BSD)

    def __call__(self, x_BSD, memory: Memory, valid_BS=None, read_BR=None, key=None) -> jax.Array:
        """Runs x through every block; returns the positions `read_BR` only, all where None."""
        x_BSD = self.start(x_BSD, valid_BS, read_BR, key)
        return self.finish(x_BSD, memory, valid_BS, read_BR, key)

    def _keys(self, key):
        return [None] * 5 if key is None else list(jax.random.split(key, 5))
