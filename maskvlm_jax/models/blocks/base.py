"""What every block is. Both classes are built from a `BlockSpec` alone, as `Block(spec, rngs=rngs)`.

What a block has to say beside its output, such as a router's load, it hands out by `models.auxiliary`.
"""

import jax
from flax import nnx

from maskvlm_jax.models.attention import Valid


class Block(nnx.Module):
    """A block of an encoder, or of a stream over a joint sequence."""

    def __call__(
        self,
        x_BSD: jax.Array,
        valid_BS: Valid = None,
        key: jax.Array | None = None,
        read_BR: jax.Array | None = None,
        added_BHRS: jax.Array | None = None,
    ) -> jax.Array:
        """The block at the positions `read_BR`, all if None; every valid position is attended to.

        `key` draws dropout; None draws none. `added_BHRS` is added to the weights of attention: zeros, by which
        `evaluators.heat` differentiates; optional, as `attention_weights`.
        """
        raise NotImplementedError

    def attention_weights(self, x_BSD: jax.Array, valid_BS: Valid = None) -> jax.Array:
        """weights_BHST: how much each position attends to each other one; float32. Optional."""
        raise NotImplementedError


class CrossBlock(nnx.Module):
    """A block that reads a memory beside its own sequence, in two parts: the first does not depend on the memory.

    `cross_attention.project(context_BTD)` makes this layer's keys and values of the memory, each (B, T, H, K).
    """

    def attend_self(
        self,
        x_BSD: jax.Array,
        valid_BS: Valid = None,
        read_BR: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """What comes before the memory, computed at the positions `read_BR`, all if None."""
        raise NotImplementedError

    def attend_memory(
        self,
        x_BSD: jax.Array,
        key_BTHK: jax.Array,
        value_BTHK: jax.Array,
        valid_BT: Valid = None,
        key: jax.Array | None = None,
        added_BHST: jax.Array | None = None,
    ) -> jax.Array:
        """The rest of the block over a memory of this layer's keys and values.

        `added_BHST` is added to the weights over the memory, as that of a `Block`; optional, as `memory_weights`.
        """
        raise NotImplementedError

    def memory_weights(self, x_BSD: jax.Array, key_BTHK: jax.Array, valid_BT: Valid = None) -> jax.Array:
        """weights_BHST: how much each position that `attend_self` gave attends to each of the memory. Optional."""
        raise NotImplementedError
