"""Image-text contrastive loss, in-batch and symmetric: MaskVLM (Kwon et al. 2023, arXiv 2208.02131), Eq. 2.

    ℓ_k = − log softmax_n( z_im^k · z_txt^n / τ )[k] − log softmax_n( z_im^n · z_txt^k / τ )[k]

The sum of both directions, as the paper writes it (ALBEF averages). No momentum encoder and no queue.
Differs from the paper: another example with the same picture or the same caption is left out of the negatives, or is
one more positive, as where ALBEF (Li et al. 2021, arXiv 2107.07651) is fine-tuned for retrieval: the targets of a row
are then equal shares of all that belong to it.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.vlm import VLM
from maskvlm_jax.objectives import base
from maskvlm_jax.objectives.context import Context


def contrastive_loss(similarity_BB: jax.Array, same_pair_BB: jax.Array, positives: str = "own") -> jax.Array:
    """loss_B from similarity logits.

    Args:
        similarity_BB: images are rows, captions columns; already divided by the temperature.
        same_pair_BB: True where the two belong together.
        positives: "own": off the diagonal such entries are neither positive nor negative; "all": they are positives.
    """
    if positives == "all":
        return sum(
            jax.nn.logsumexp(similarity_BB, axis=axis) - jnp.mean(similarity_BB, axis=axis, where=same_pair_BB)
            for axis in (1, 0)
        )
    own_BB = jnp.eye(similarity_BB.shape[0], dtype=bool)
    logits_BB = jnp.where(same_pair_BB & ~own_BB, -jnp.inf, similarity_BB)
    own_B = jnp.diagonal(similarity_BB)
    image_to_text_B = jax.nn.logsumexp(logits_BB, axis=1) - own_B
    text_to_image_B = jax.nn.logsumexp(logits_BB, axis=0) - own_B
    return image_to_text_B + text_to_image_B


class Objective(base.Objective, base.TrainsEmbeddings):
    """Pulls matched pairs together in the shared space and pushes the batch's other pairs apart.

    Args:
        vlm: the model.
        shared: block arguments shared with the model.
        positives: what belongs to an example: "own", its own picture and caption; "all", equal ones of other examples
            too.
    """

    choices: ClassVar = {"positives": ("own", "all")}
    training_arguments = ("positives",)

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> base.Needs:
        return base.Needs(embedding=True, negatives=True)

    def __init__(self, vlm: VLM, *, shared: dict, positives: str = "own", rngs: nnx.Rngs):
        self.positives = positives
        self.views = {"image": frozenset({"clean"}), "text": frozenset({"clean"})}

    def __call__(self, ctx: Context, key: jax.Array) -> tuple[base.Terms, dict[str, jax.Array]]:
        similarity_BB = ctx.similarity_BB
        best_B = jnp.argmax(jnp.where(ctx.same_pair_BB, -jnp.inf, similarity_BB), axis=1)
        best_other_B = jnp.take_along_axis(similarity_BB, best_B[:, None], axis=1)[:, 0]
        accuracy = jnp.mean(jnp.diagonal(similarity_BB) > best_other_B)
        loss_B = contrastive_loss(similarity_BB, ctx.same_pair_BB, self.positives)
        return base.Terms(loss_B), {"accuracy": accuracy, "temperature": ctx.vlm.current_temperature()}
