"""What losses over prototypes share, in the form of DINO (arXiv 2104.14294) and iBOT (arXiv 2111.07832).

    q(x) = softmax( P(x) / τ )        q'(x') = softmax( (P'(x') − c) / τ' )        ℓ = H( q'(x'), q(x) )

P: cosines with prototypes, by one head for all objectives of this kind; P': by its moving average. The centre c goes
from step to step, c ← m c + (1 − m) mean P'(x'), the mean over the whole batch: without it one prototype would in the
end stand for everything. Nothing of q' has a gradient. Behind t batches m is at most t / (t + 1): c is a mean from the
first batch on, where the releases start from zero.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.prototypes import Prototypes
from maskvlm_jax.models.vlm import VLM
from maskvlm_jax.objectives import base
from maskvlm_jax.objectives.context import Context
from maskvlm_jax.objectives.distilled_masked_text import distillation_loss
from maskvlm_jax.objectives.reduce import masked_mean


class PrototypeObjective(base.Objective):
    """A loss that holds the model's distribution over prototypes against that of its moving average.

    Logs the mean `entropy` of the moving average's distributions and the entropy of their mean, `entropy_of_mean`, in
    nats, at most log J. A collapsed model has both at log J, or both at zero.

    Args:
        vlm: the model.
        head: arguments of `Prototypes`; one head for all objectives of this kind.
        student_temperature: τ.
        teacher_temperature: τ' before `ramp` and behind it.
        ramp: shares of the training between which τ' goes from the one to the other; (0, 0): it is the second.
        centre_decay: m.
    """

    shares = ("head",)
    training_arguments = ("student_temperature", "teacher_temperature", "ramp", "centre_decay")

    def __init__(
        self,
        vlm: VLM,
        *,
        head: Mapping[str, Any],
        student_temperature: float,
        teacher_temperature: tuple[float, float],
        ramp: tuple[float, float],
        centre_decay: float,
        shared: dict,
        rngs: nnx.Rngs,
    ):
        common = {name: shared[name] for name in ("init_std", "dtype")}
        self.head = Prototypes(vlm.image_encoder.width, **head, **common, rngs=rngs)
        self.count, self.student_temperature = head["count"], student_temperature
        self.teacher_temperature, self.ramp = tuple(teacher_temperature), tuple(ramp)
        self.centre_decay = centre_decay

    def first_kept(self) -> dict[str, jax.Array]:
        return {"centre": jnp.zeros((self.count,), jnp.float32), "batches": jnp.zeros((), jnp.float32)}

    def next_kept(self, kept: Mapping[str, jax.Array], seen: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        mean_J, batches = seen["sum"] / jnp.maximum(seen["count"], 1e-6), kept["batches"]
        decay = jnp.minimum(self.centre_decay, batches / (batches + 1.0))
        return {"centre": decay * kept["centre"] + (1.0 - decay) * mean_J, "batches": batches + 1.0}

    def distances(
        self, ctx: Context, student_BRD: jax.Array, teacher_BRD: jax.Array, valid_BR: jax.Array
    ) -> tuple[base.Terms, dict[str, jax.Array], dict[str, jax.Array]]:
        """What `__call__` returns, of vectors of the model and of its moving average, where `valid_BR`."""
        raw_BRJ = ctx.teacher_head(self).head(teacher_BRD)
        raw_BRJ, target_BRJ = jax.lax.stop_gradient((raw_BRJ, self.target(ctx, raw_BRJ)))
        loss_BR = distillation_loss(self.head(student_BRD) / self.student_temperature, target_BRJ)
        share_BRJ = jax.nn.softmax(target_BRJ)
        mean_J = jax.vmap(masked_mean, (2, None))(share_BRJ, valid_BR)
        entropies = {"entropy": masked_mean(entropy(share_BRJ), valid_BR), "entropy_of_mean": entropy(mean_J)}
        counted_BR1 = valid_BR[..., None].astype(jnp.float32)
        seen = {
            "sum": jnp.mean(jnp.sum(raw_BRJ * counted_BR1, axis=1), axis=0),
            "count": jnp.mean(jnp.sum(counted_BR1, axis=1)),
        }
        return base.Terms(loss_BR, valid_BR), entropies, seen

    def target(self, ctx: Context, raw_BRJ: jax.Array) -> jax.Array:
        """The logarithms of q' but for a constant, of the moving average's cosines."""
        first, last = self.teacher_temperature
        return (raw_BRJ - self.kept(ctx)["centre"]) / (first + (last - first) * ctx.ramp(*self.ramp))


def entropy(share_BRJ: jax.Array) -> jax.Array:
    """Entropy of each distribution in nats."""
    return -jnp.sum(jax.scipy.special.xlogy(share_BRJ, share_BRJ), axis=-1)
