"""What a microbatch knows of the batch that it is a part of."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maskvlm_jax.data.batch import FEATURES
from maskvlm_jax.models.fusion import PairSide
from maskvlm_jax.models.layers import take_rows
from maskvlm_jax.models.vision import normalised
from maskvlm_jax.models.vlm import VLM


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

    def pair_image(self, vlm: VLM, rows: jax.Array, shares: int, key: Callable[[str], jax.Array | None]) -> PairSide:
        """What matching reads of the pictures `rows` of all its examples.

        Args:
            shares: as in `take_rows`.
            key: of one use, as `Context.key`.
        """
        if FEATURES in self.batch:
            image_BSD = take_rows(self.batch[FEATURES], rows, 0, shares)
        else:
            image = normalised(take_rows(self.batch["image"], rows, 0, shares))
            image_BSD = vlm.encode_image(image, None, None, key("others"))
        return vlm.fusion.pair_image(vlm.fusion.image_side(image_BSD), key("start/other_images"))

    def pair_text(self, vlm: VLM, rows: jax.Array, shares: int, key: Callable[[str], jax.Array | None]) -> PairSide:
        """The same of captions."""
        tokens_BL, valid_BL = (take_rows(self.batch[name], rows, 0, shares) for name in ("tokens", "token_valid"))
        text_BLD = vlm.text_encoder(tokens_BL, valid_BL, key("other_texts"))
        return vlm.fusion.pair_text(vlm.fusion.text_side(text_BLD, valid_BL), key("start/other_texts"))

    def embed(self, all_BE: jax.Array, own_BE: jax.Array) -> jax.Array:
        """`all_BE` with the microbatch's own rows, whose gradient counts `parts` times.

        An in-batch loss is computed whole in every microbatch, and the mean over microbatches is taken of gradients:
        of a row it must be the sum, since only one microbatch has that row's.
        """
        still_BE = jax.lax.stop_gradient(own_BE)
        scaled_BE = still_BE + self.parts * (own_BE - still_BE)
        cut = all_BE.reshape(-1, self.parts, all_BE.shape[-1])
        return jax.lax.dynamic_update_index_in_dim(cut, scaled_BE, self.part, axis=1).reshape(all_BE.shape)
