"""What a microbatch knows of the batch that it is a part of."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp


class FullBatch(NamedTuple):
    """The batch that a microbatch is a part of: every `parts`-th example from number `part` on.

    batch: its arrays; image_embedding_BE, text_embedding_BE: of all its examples, without a gradient, None if the
    model has no contrastive space.
    """

    batch: Mapping[str, jax.Array]
    image_embedding_BE: jax.Array | None
    text_embedding_BE: jax.Array | None
    part: jax.Array
    parts: int

    def rows(self, size: int) -> jax.Array:
        """Which examples the microbatch of `size` holds."""
        return self.part + self.parts * jnp.arange(size)

    def embed(self, all_BE: jax.Array, own_BE: jax.Array) -> jax.Array:
        """`all_BE` with the microbatch's own rows, whose gradient counts `parts` times.

        An in-batch loss is computed whole in every microbatch, and the mean over microbatches is taken of gradients:
        of a row it must be the sum, since only one microbatch has that row's.
        """
        still_BE = jax.lax.stop_gradient(own_BE)
        scaled_BE = still_BE + self.parts * (own_BE - still_BE)
        cut = all_BE.reshape(-1, self.parts, all_BE.shape[-1])
        return jax.lax.dynamic_update_index_in_dim(cut, scaled_BE, self.part, axis=1).reshape(all_BE.shape)
