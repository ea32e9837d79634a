"""Features of earlier batches, negatives of the next ones: the queue of MoCo and ALBEF (arXiv 2107.07651)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Queue(NamedTuple):
    """The newest Q pairs, newest first: the moving average's features and which pairs they are of.

    pair_id_Q2 as in a batch; valid_Q is False where nothing has been put yet.
    """

    image_QE: jax.Array
    text_QE: jax.Array
    pair_id_Q2: jax.Array
    valid_Q: jax.Array


def make_queue(size: int, embed: int) -> Queue:
    """An empty queue."""
    features = jnp.zeros((size, embed), jnp.float32)
    return Queue(features, features.copy(), jnp.zeros((size, 2), jnp.int32), jnp.zeros((size,), bool))


def push(queue: Queue, image_BE: jax.Array, text_BE: jax.Array, pair_id_B2: jax.Array) -> Queue:
    """The queue with a batch put in front; as many of the oldest leave it."""
    new = Queue(image_BE, text_BE, pair_id_B2, jnp.ones(len(image_BE), bool))
    size = len(queue.valid_Q)
    return jax.tree.map(lambda new, old: jnp.concatenate([new, old])[:size], new, queue)
