"""Balanced experts: the auxiliary loss of EVE (Chen et al. 2024, arXiv 2308.11971), Eq. 7, as Switch Transformers
(arXiv 2101.03961).

    ℓ = E · Σ_e f_e p_e        f_e: share of the positions whose first choice is e, without a gradient; p_e: mean r_e

of each routed block in each pass, over all real positions of the batch, padded words left out; the mean over blocks and
passes. 1 where all experts get as much, E where one gets all; its weight is the paper's α, 0.001.
"""

import jax
import jax.numpy as jnp

from maskvlm_jax.models.vlm import VLM
from maskvlm_jax.objectives import base
from maskvlm_jax.objectives.context import Context
from maskvlm_jax.objectives.reduce import masked_mean
from maskvlm_jax.runtime.errors import UserError


def balance_terms(router_BSJ: jax.Array, real_BS: jax.Array) -> base.Terms:
    """The term of one block in one pass; router_BSJ: shares of the experts, of which rows sum to 1."""
    experts = router_BSJ.shape[-1]
    return base.Terms(experts * router_BSJ, real_BS, factor=first_choices(router_BSJ))


def first_choices(router_BSJ: jax.Array) -> jax.Array:
    """(B, S, J): 1 at the likeliest expert of each position."""
    return jax.nn.one_hot(jnp.argmax(router_BSJ, axis=-1), router_BSJ.shape[-1], dtype=jnp.float32)


class Objective(base.Objective):
    """Spreads positions over the experts of routed blocks.

    Logs `busiest`, the share of the positions whose first choice is the expert that is so most often, and `entropy` of
    the shares f in nats, at most log E: means over blocks and passes.
    """

    reads_auxiliary = True

    def __init__(self, vlm: VLM, *, shared: dict, rngs):
        self.views = {"image": frozenset(), "text": frozenset()}

    def __call__(self, ctx: Context, key: jax.Array) -> tuple[tuple[base.Terms, ...], dict[str, jax.Array]]:
        stacks = zip(ctx.auxiliary.get("router", ()), ctx.auxiliary.get("routed", ()), strict=True)
        blocks = [block for stack in stacks for block in zip(*stack, strict=True)]
        if not blocks:
            raise UserError(
                "the objective load_balance balances routed experts, and no block has any; set its weight to 0, or "
                "model.fusion.experts.layers to 1 or more"
            )
        terms = (balance_terms(*block)._replace(weight=1 / len(blocks)) for block in blocks)
        shares = [load(*block) for block in blocks]
        busiest = [jnp.max(share_J) for share_J in shares]
        entropy = [-jnp.sum(jax.scipy.special.xlogy(share_J, share_J)) for share_J in shares]
        return tuple(terms), {"busiest": jnp.mean(jnp.stack(busiest)), "entropy": jnp.mean(jnp.stack(entropy))}


def load(router_BSJ: jax.Array, real_BS: jax.Array) -> jax.Array:
    """share_J of the real positions whose first choice each expert is."""
    return jax.vmap(masked_mean, (2, None))(first_choices(router_BSJ), real_BS)
