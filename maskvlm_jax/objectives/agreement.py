"""Agreement of a picture with itself, by its class token: after SemMIM (Liu et al. 2024, arXiv 2403.00249), as DINO.

    ℓ = ½ [ H( q'(v̂(I_a)), q(v(I_b)) ) + H( q'(v̂(I_b)), q(v(I_a)) ) ]          two crops of the picture
    ℓ = H( q'(v̂(I)), q(v(I_m)) )                                               the whole picture and the masked one

v, v̂: the class token of the image encoder and of its moving average; q, q': see `prototypes`. Patches share the head
with it (`masked_prototype`), and so the meaning of the prototypes. What the paper does beyond that idea is not in its
public summaries: the form is DINO's (arXiv 2104.14294), of iBOT's settings (arXiv 2111.07832).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.vlm import VLM
from maskvlm_jax.objectives import base
from maskvlm_jax.objectives.context import Context
from maskvlm_jax.objectives.prototypes import PrototypeObjective

SECOND = "second_crop"  # the label of the field that holds another crop


class Objective(PrototypeObjective):
    """Tells the prototypes of a picture from another view of it.

    Args:
        vlm: the model.
        between: "crops": two crops, neither masked, of which the second is the field `second_crop`; "masks": the moving
            average reads the whole picture and the model the masked one, for pictures that cannot be cropped.
        options: as of `PrototypeObjective`.
    """

    choices: ClassVar = {"between": ("crops", "masks")}
    training_arguments = (*PrototypeObjective.training_arguments, "between")

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> base.Needs:
        crops = arguments.get("between", "crops") == "crops"
        hidden = () if crops else ("token", "pixel", "drop", "left_out")
        fields = (SECOND,) if crops else ()
        return base.Needs(teacher=True, masked_pictures=not crops, hidden=hidden, class_token=True, fields=fields)

    def __init__(self, vlm: VLM, *, between: str = "crops", rngs: nnx.Rngs, **options: Any):
        super().__init__(vlm, **options, rngs=rngs)
        self.between = between
        self.views = {"image": frozenset({"clean" if between == "crops" else "masked"}), "text": frozenset()}

    def __call__(self, ctx: Context, key: jax.Array) -> tuple[base.Terms, dict[str, jax.Array], dict[str, jax.Array]]:
        if self.between == "masks":
            student, teacher = [ctx.image("masked")], [ctx.teacher.image("clean")]
        else:
            other = ctx.replacing(SECOND, {"image": ctx.batch[SECOND]})
            student = [ctx.image("clean"), other.image("clean")]
            teacher = [other.teacher.image("clean"), ctx.teacher.image("clean")]
        student_BRD, teacher_BRD = (jnp.stack([x[:, 0] for x in views], axis=1) for views in (student, teacher))
        return self.distances(ctx, student_BRD, teacher_BRD, jnp.ones(student_BRD.shape[:2], bool))
