"""Blocks of equal shape, stacked and scanned: compile time does not grow with depth."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint

from maskvlm_jax.models import auxiliary
from maskvlm_jax.models.block import BlockSpec, block_class
from maskvlm_jax.runtime.sharding import split_rows

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Stack(nnx.Module):
    """`depth` copies of a block whose parameters are stacked on a leading layer axis.

    Args:
        spec: of the blocks. Its `remat`: 'none' keeps every activation for the backward pass, 'dots' those of products
            with weights, 'full' only each block's input. Its `unroll`: write the blocks one after another instead of
            as a loop: faster on a CPU, slower to compile. The parameters and the numbers are the same.
        depth: number of blocks; with none, `scan` returns what it is given.
        part: which class of the spec's kind, see `block.block_class`.
    """

    def __init__(self, spec: BlockSpec, depth: int, *, part: str = "Block", rngs: nnx.Rngs):
        make_block = block_class(spec.kind, part)
        blocks = [nnx.split(make_block(spec, rngs=rngs)) for _ in range(depth)]
        states = [state for _, state in blocks]
        self.block = nnx.merge(blocks[0][0], jax.tree.map(lambda *x: jnp.stack(x), *states)) if blocks else None
        self.depth, self.remat, self.unroll = depth, spec.remat, spec.unroll

    def layer(self, index: int) -> Any:
        """The block of one layer."""
        graphdef, state = nnx.split(self.block)
        return nnx.merge(graphdef, jax.tree.map(lambda x: x[index], state))

    def once(self, index: int, apply: Callable, *arguments: Any) -> Any:
        """apply(block, *arguments) of one layer, whose activations `remat` treats as those of `scan`."""
        graphdef, state = nnx.split(self.layer(index))

        def run(state, *arguments):
            with auxiliary.of_layer() as values:
                result = _placed(apply(nnx.merge(graphdef, state), *arguments))
            return result, values

        policy = REMAT_POLICIES[self.remat]
        result, values = (run if policy is None else jax.checkpoint(run, policy=policy))(state, *arguments)
        auxiliary.pass_on(values)
        return result

    def scan(self, apply: Callable, carry: Any, xs: Any = None, *, start: int = 0, stop: int | None = None) -> Any:
        """carry = apply(block, carry, x) over the layers start:stop; `xs` has a leading layer axis of its own."""
        stop = self.depth if stop is None else stop
        if start >= stop:
            return carry
        graphdef, state = nnx.split(self.block)
        state, xs = jax.tree.map(lambda x: x[start:stop], (state, xs))

        def body(carry, layer):
            state, x = layer
            with auxiliary.of_layer() as values:
                carry = _placed(apply(nnx.merge(graphdef, state), _placed(carry), x))
            return carry, values

        policy = REMAT_POLICIES[self.remat]
        body = body if policy is None else jax.checkpoint(body, policy=policy, prevent_cse=self.unroll)
        carry, values = jax.lax.scan(body, carry, (state, xs), unroll=stop - start if self.unroll else 1)
        # The scan puts its axis of layers before the axis of one that `hand_out` adds.
        auxiliary.pass_on(jax.tree.map(lambda x: x[:, 0], values))
        return carry

    def map(self, apply: Callable) -> Any:
        """apply(block) of every layer, results stacked on a leading layer axis."""
        results = [apply(self.layer(i)) for i in range(self.depth)]
        return jax.tree.map(lambda *x: jnp.stack(x), *results)


def _placed(streams: Any) -> Any:
    """One residual stream, or several, as blocks want them: rows split over devices, each position's vector in one
    piece.

    XLA would lay it out by what reads it at the end. Where two views are cut out of one batch it chose, for an H100,
    (position, width, example), and every product turned it and back. Over several devices it is left to itself: with
    the constraint some shapes are gathered more often.
    """
    streams = jax.tree.map(split_rows, streams)
    if jax.default_backend() != "gpu" or jax.sharding.get_abstract_mesh().size > 1:
        return streams
    return jax.tree.map(lambda x: with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim)))), streams)


def layer_keys(key: jax.Array | None, depth: int) -> jax.Array | None:
    """One dropout key a layer, or None."""
    return None if key is None else jax.random.split(key, depth)
