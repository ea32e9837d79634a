"""The Transformer's blocks (arXiv 1706.03762): every position goes through every parameter."""

from collections.abc import Callable

import jax
from flax import nnx

from maskvlm_jax.models.attention import Valid
from maskvlm_jax.models.block import BlockSpec
from maskvlm_jax.models.blocks import base
from maskvlm_jax.models.layers import Attention, FeedForward, LayerNorm, dropout, take


class Attending(base.Block):
    """Self-attention with its residual: what kinds of blocks begin with."""

    def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs):
        self.attention, self.norm1 = _attention(spec, rngs), norm(spec)
        self.pre, self.dropout = spec.pre_norm, spec.dropout

    def attended(
        self,
        x_BSD: jax.Array,
        valid_BS: Valid = None,
        key: jax.Array | None = None,
        read_BR: jax.Array | None = None,
        added_BHRS: jax.Array | None = None,
    ) -> jax.Array:
        """x_BRD behind the self-attention, at the positions `read_BR`, all if None."""
        y_BSD = self.norm1(x_BSD) if self.pre else x_BSD
        attended_BRD = self.attention.to_itself(y_BSD, valid_BS, read_BR, added_BHRS)
        x_BRD = take(x_BSD, read_BR) + dropout(attended_BRD, self.dropout, key)
        return x_BRD if self.pre else self.norm1(x_BRD)

    def added(self, part: Callable, norm: LayerNorm, x_BSD: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """x + part(x), with a norm before the part or behind the sum."""
        y_BSD = norm(x_BSD) if self.pre else x_BSD
        x_BSD = x_BSD + dropout(part(y_BSD), self.dropout, key)
        return x_BSD if self.pre else norm(x_BSD)

    def attention_weights(self, x_BSD: jax.Array, valid_BS: Valid = None) -> jax.Array:
        """weights_BHST of the self-attention."""
        y_BSD = self.norm1(x_BSD) if self.pre else x_BSD
        return self.attention.weights(y_BSD, self.attention.project(y_BSD)[0], valid_BS)


class Block(Attending):
    """Self-attention and feed-forward, each with a residual."""

    def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs):
        super().__init__(spec, rngs=rngs)
        self.feed_forward, self.norm2 = feed_forward(spec, rngs), norm(spec)

    def __call__(
        self,
        x_BSD: jax.Array,
        valid_BS: Valid = None,
        key: jax.Array | None = None,
        read_BR: jax.Array | None = None,
        added_BHRS: jax.Array | None = None,
    ) -> jax.Array:
        key1, key2 = (None, None) if key is None else jax.random.split(key)
        attended_BRD = self.attended(x_BSD, valid_BS, key1, read_BR, added_BHRS)
        return self.added(self.feed_forward, self.norm2, attended_BRD, key2)


class CrossBlock(base.CrossBlock):
    """Self-attention, attention over the other modality, feed-forward, each with a residual (MaskVLM, Fig. 3b)."""

    def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs):
        self.self_attention = _attention(spec, rngs)
        self.cross_attention = _attention(spec, rngs)
        self.feed_forward = feed_forward(spec, rngs)
        self.norm1, self.norm2, self.norm3 = norm(spec), norm(spec), norm(spec)
        self.pre, self.dropout = spec.pre_norm, spec.dropout

    def attend_self(
        self,
        x_BSD: jax.Array,
        valid_BS: Valid = None,
        read_BR: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """First sub-block."""
        y_BSD = self.norm1(x_BSD) if self.pre else x_BSD
        attended_BRD = self.self_attention.to_itself(y_BSD, valid_BS, read_BR)
        x_BRD = take(x_BSD, read_BR) + dropout(attended_BRD, self.dropout, key)
        return x_BRD if self.pre else self.norm1(x_BRD)

    def attend_memory(
        self,
        x_BSD: jax.Array,
        key_BTHK: jax.Array,
        value_BTHK: jax.Array,
        valid_BT: Valid = None,
        key: jax.Array | None = None,
        added_BHST: jax.Array | None = None,
    ) -> jax.Array:
        """Second and third sub-block."""
        key2, key3 = (None, None) if key is None else jax.random.split(key)
        y_BSD = self.norm2(x_BSD) if self.pre else x_BSD
        attended_BSD = self.cross_attention(y_BSD, key_BTHK, value_BTHK, valid_BT, added_BHST)
        x_BSD = x_BSD + dropout(attended_BSD, self.dropout, key2)
        x_BSD = x_BSD if self.pre else self.norm2(x_BSD)
        y_BSD = self.norm3(x_BSD) if self.pre else x_BSD
        x_BSD = x_BSD + dropout(self.feed_forward(y_BSD), self.dropout, key3)
        return x_BSD if self.pre else self.norm3(x_BSD)

    def memory_weights(self, x_BSD: jax.Array, key_BTHK: jax.Array, valid_BT: Valid = None) -> jax.Array:
        """weights_BHST of the attention over the memory."""
        return self.cross_attention.weights(self.norm2(x_BSD) if self.pre else x_BSD, key_BTHK, valid_BT)


def _attention(spec: BlockSpec, rngs: nnx.Rngs) -> Attention:
    return Attention(spec.width, heads=spec.heads, init_std=spec.init_std, dtype=spec.dtype, rngs=rngs)


def feed_forward(spec: BlockSpec, rngs: nnx.Rngs) -> FeedForward:
    """The feed-forward layer of a spec."""
    options = {"activation": spec.activation, "init_std": spec.init_std, "dtype": spec.dtype}
    return FeedForward(spec.width, ratio=spec.mlp_ratio, **options, rngs=rngs)


def norm(spec: BlockSpec) -> LayerNorm:
    """The layer norm of a spec."""
    return LayerNorm(spec.width, eps=spec.eps, dtype=spec.dtype)
