"""Blocks whose feed-forward layers are experts: EVE (Chen et al. 2024, arXiv 2308.11971).

Self-attention is shared by all positions. Behind it a position goes through the feed-forward layer of its modality
(`ModalityBlock`), or through those that a router chooses (`RoutedBlock`). Words come first in a sequence, patches
follow, so that modalities are told apart by two numbers: `words`, how many of its positions are words, and
`read_words`, how many of the positions that are read.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models import auxiliary, routing
from maskvlm_jax.models.attention import First, Valid
from maskvlm_jax.models.block import BlockSpec, RoutedSpec
from maskvlm_jax.models.blocks.dense import Attending, feed_forward, norm
from maskvlm_jax.models.layers import take


class ModalityBlock(Attending):
    """Self-attention, then a norm and a feed-forward layer of each modality's own (hard routing)."""

    def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs):
        super().__init__(spec, rngs=rngs)
        self.feed_forward = nnx.Dict(text=feed_forward(spec, rngs), image=feed_forward(spec, rngs))
        self.norm2 = nnx.Dict(text=norm(spec), image=norm(spec))

    def __call__(
        self,
        x_BSD: jax.Array,
        valid_BS: Valid = None,
        key: jax.Array | None = None,
        read_BR: jax.Array | None = None,
        added_BHRS: jax.Array | None = None,
        *,
        words: int,
        read_words: int,
    ) -> jax.Array:
        key1, *keys = (None, None, None) if key is None else jax.random.split(key, 3)
        x_BRD = self.attended(x_BSD, valid_BS, key1, read_BR, added_BHRS)
        cut = words if read_BR is None else read_words
        parts = {"text": x_BRD[:, :cut], "image": x_BRD[:, cut:]}
        run = [
            self.added(self.feed_forward[name], self.norm2[name], part, key)
            for (name, part), key in zip(parts.items(), keys, strict=True)
            if part.shape[1]
        ]
        return run[0] if len(run) == 1 else jnp.concatenate(run, axis=1)


class RoutedBlock(Attending):
    """Self-attention, then the experts that the router chooses for a position.

    Hands out of all positions of the sequence, read or not: `router` (B, S, J), the shares of the experts, and `routed`
    (B, S), True at real positions.
    """

    def __init__(self, spec: RoutedSpec, *, rngs: nnx.Rngs):
        super().__init__(spec, rngs=rngs)
        self.router = routing.Router(spec.width, spec.experts, init_std=spec.init_std, rngs=rngs)
        options = {"activation": spec.activation, "init_std": spec.init_std, "dtype": spec.dtype}
        self.experts = routing.Experts(spec.width, spec.experts, ratio=spec.expert_ratio, **options, rngs=rngs)
        self.norm2, self.top = norm(spec), spec.top

    def __call__(
        self,
        x_BSD: jax.Array,
        valid_BS: Valid = None,
        key: jax.Array | None = None,
        read_BR: jax.Array | None = None,
        added_BHRS: jax.Array | None = None,
        *,
        words: int,
        read_words: int,
    ) -> jax.Array:
        key1, key2 = (None, None) if key is None else jax.random.split(key)
        if read_BR is not None and auxiliary.wanted():
            # Experts are balanced over all positions: those that are not read take part up to the router.
            x_BSD = self.attended(x_BSD, valid_BS, key1)
            router_BSJ = self.router(self.norm2(x_BSD) if self.pre else x_BSD, words)
            _hand_out(router_BSJ, valid_BS)
            x_BRD, router_BRJ = take(x_BSD, read_BR), take(router_BSJ, read_BR)
            return self.added(lambda y_BRD: self._mixed(y_BRD, router_BRJ), self.norm2, x_BRD, key2)

        def mixed(y_BRD: jax.Array) -> jax.Array:
            router_BRJ = self.router(y_BRD, words if read_BR is None else read_words)
            if read_BR is None:
                _hand_out(router_BRJ, valid_BS)
            return self._mixed(y_BRD, router_BRJ)

        return self.added(mixed, self.norm2, self.attended(x_BSD, valid_BS, key1, read_BR, added_BHRS), key2)

    def _mixed(self, y_BRD: jax.Array, router_BRJ: jax.Array) -> jax.Array:
        return self.experts(y_BRD, *routing.chosen(router_BRJ, self.top))


def _hand_out(router_BSJ: jax.Array, valid_BS: Valid) -> None:
    shape = router_BSJ.shape[:2]
    real = valid_BS.mask(shape[1]) if isinstance(valid_BS, First) else True if valid_BS is None else valid_BS
    auxiliary.hand_out("router", router_BSJ)
    auxiliary.hand_out("routed", jnp.broadcast_to(real, shape))
