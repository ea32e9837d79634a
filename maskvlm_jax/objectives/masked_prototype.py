"""Masked patches predicted as prototypes of the moving average: after SemMIM (Liu et al. 2024, arXiv 2403.00249).

    ℓ = 1/|M| · Σ_{n ∈ M} H( q'(ĥ_im(I, T)_n), q(h_im(I_m, T)_n) )

h_im, ĥ_im: fused patches of the masked picture with its caption, and of the whole pair under the moving average, which
so puts the caption's meaning into the target; q, q': see `prototypes`. Which feature is projected, and all values, are
not in the paper's public summaries: the form is iBOT's (arXiv 2111.07832).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from flax import nnx

from maskvlm_jax.models.layers import take
from maskvlm_jax.models.vlm import VLM
from maskvlm_jax.objectives import base
from maskvlm_jax.objectives.context import Context
from maskvlm_jax.objectives.prototypes import PrototypeObjective


class Objective(PrototypeObjective):
    """Tells the prototypes of masked patches from the visible ones and the caption.

    Args:
        vlm: the model.
        prediction, target: "fused": patches that have read the caption; "image": those of the image encoder alone.
        options: as of `PrototypeObjective`.
    """

    choices: ClassVar = {"prediction": ("fused", "image"), "target": ("fused", "image")}
    training_arguments = (*PrototypeObjective.training_arguments, "prediction", "target")

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> base.Needs:
        fused = "fused" in (arguments.get("prediction", "fused"), arguments.get("target", "fused"))
        encoded = arguments.get("prediction", "fused") == "image"  # where a dropped patch would be a bare mask token
        hidden = ("token", "pixel") if encoded else ()
        return base.Needs(fusion=fused, fused_patches=fused, masked_pictures=True, teacher=True, hidden=hidden)

    def __init__(self, vlm: VLM, *, prediction: str = "fused", target: str = "fused", rngs: nnx.Rngs, **options: Any):
        super().__init__(vlm, **options, rngs=rngs)
        self.prediction, self.targets = prediction, target
        text = {"clean"} if prediction == "fused" else set()
        self.views = {"image": frozenset({"masked"}), "text": frozenset(text)}

    def __call__(self, ctx: Context, key: jax.Array) -> tuple[base.Terms, dict[str, jax.Array], dict[str, jax.Array]]:
        student_BMD, teacher_BMD = self.patches(ctx)
        return self.distances(ctx, student_BMD, teacher_BMD, ctx.masked_patches.valid_BM)

    def patches(self, ctx: Context) -> tuple[jax.Array, jax.Array]:
        """Vectors of the masked patches, (B, M, D): the model's and those of its moving average."""
        read_BM, teacher = ctx.masked_patches.ids_BM + ctx.vlm.image_encoder.prefix, ctx.teacher
        return (
            ctx.fuse_masked_patches() if self.prediction == "fused" else take(ctx.image("masked"), read_BM),
            teacher.fuse_image("clean", "clean", read_BM)
            if self.targets == "fused"
            else take(teacher.image("clean"), read_BM),
        )
