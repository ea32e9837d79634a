"""FLOPs of what blocks are made of, a multiply-add counting two; see `plan.flops`."""

from typing import Any

from maskvlm_jax.models.layers import few_queries

Block = Any  # width, heads, mlp_ratio and depth of a stack: `config.model.image`, `.text`, `.fusion` or a decoder


def dense(rows: int, inputs: int, outputs: int) -> float:
    """A product of `rows` vectors with a matrix."""
    return 2.0 * rows * inputs * outputs


def project(block: Block, length: int) -> float:
    """Keys and values of a sequence for one attention."""
    return 2 * dense(length, block.width, block.width)


def attend(block: Block, queries: int, keys: int) -> float:
    """Queries, scores, weighted values and output of one attention; `project` not included."""
    return 2 * dense(queries, block.width, block.width) + 2 * dense(queries, block.width, keys)


def attend_itself(block: Block, length: int, read: int) -> float:
    """Self-attention of a sequence at `read` of its positions; a few carry their queries to it, see `Attention`."""
    if few_queries(read, length, heads=block.heads, width=block.width):
        return 4 * dense(read, block.width, block.width) + 2 * dense(block.heads * read, block.width, length)
    return project(block, length) + attend(block, read, length)


def feed_forward(block: Block, length: int) -> float:
    return 2 * dense(length, block.width, block.mlp_ratio * block.width)


def encoder_block(block: Block, length: int) -> float:
    """Self-attention and feed-forward of one layer of an encoder."""
    return attend_itself(block, length, length) + feed_forward(block, length)


def cross_start(block: Block, length: int, read: int) -> float:
    """The first self-attention of a cross stack; a stack of one block computes it at the read positions only."""
    return attend_itself(block, length, read if block.depth == 1 else length)


def cross_finish(block: Block, length: int, context: int, read: int) -> float:
    """The rest of a cross stack over a memory of `context` positions; the last block at `read` positions."""

    def after_start(positions: int) -> float:
        return attend(block, positions, context) + feed_forward(block, positions)

    if block.depth == 1:
        return after_start(read)
    middle = (block.depth - 2) * attend_itself(block, length, length)
    last = attend_itself(block, length, read) + after_start(read)
    return (block.depth - 1) * after_start(length) + middle + last
