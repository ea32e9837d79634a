"""Classes of pairs: ℓ = H(y, softmax MLP(z)), z the fused vector of a picture and a caption.

Of one pair (visual entailment), or of two that share a picture or a caption or neither: one caption of two pictures
(NLVR2: MaskVLM's concatenation of (T, I1) and (T, I2); Kwon et al. 2023, arXiv 2208.02131), two products of a picture
and a caption each (MLIM, arXiv 2109.12178). The MLP is ALBEF's (Li et al. 2021, arXiv 2107.07651): two dense layers,
the first as wide as the model.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from maskvlm_jax.models.activations import activate
from maskvlm_jax.models.layers import Dense
from maskvlm_jax.models.vlm import VLM
from maskvlm_jax.objectives import base
from maskvlm_jax.objectives.context import Context
from maskvlm_jax.runtime.errors import UserError


class Objective(base.Objective, base.Classifies):
    """The cross entropy of the class.

    Args:
        vlm: the model.
        shared: block arguments shared with the model.
        classes: how many there are.
        label: the field that holds the right one.
        second: of the second pair, the field that takes the place of each of "image" and "text"; what is not named is
            the first pair's; {} = there is no second pair.
        combine: what is read of two vectors a, b: "concat", both; "compare", their product and the size of their
            difference too, which say how alike they are.
    """

    choices: ClassVar = {"combine": ("concat", "compare")}

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> base.Needs:
        if (classes := arguments.get("classes", 0)) < 2:
            raise UserError(f"there are {classes} classes of a pair; give their number, classes, two at least")
        if unknown := set(arguments.get("second", {})) - {"image", "text"}:
            raise UserError(
                f"second has {unknown.pop()!r}; it names the fields of a second image, a second text or both"
            )
        fields = (arguments.get("label", "label"), *dict(arguments.get("second", {})).values())
        return base.Needs(fusion=True, fields=fields)

    def __init__(
        self,
        vlm: VLM,
        *,
        shared: dict,
        classes: int,
        label: str = "label",
        second: Mapping[str, str] | None = None,
        combine: str = "concat",
        rngs,
    ):
        width = vlm.text_encoder.width
        self.label, self.combine = label, combine
        self.second = tuple(sorted((second or {}).items()))
        vectors = (4 if combine == "compare" else 2) if self.second else 1
        self.hidden = Dense(vectors * vlm.pair_width, width, init_std=shared["init_std"], exact=True, rngs=rngs)
        self.to_class = Dense(width, classes, init_std=None, exact=True, rngs=rngs)
        self.views = {"image": frozenset({"clean"}), "text": frozenset({"clean"})}

    def logits(self, ctx: Context) -> jax.Array:
        """logits_BC of the classes, float32."""
        pair_BD = ctx.pair_PD.astype(jnp.float32)
        if self.second:
            other_BD = ctx.replacing("second", self._replacements(ctx.batch)).pair_PD.astype(jnp.float32)
            pair_BD = jnp.concatenate([pair_BD, other_BD, *self._compared(pair_BD, other_BD)], axis=1)
        return self.to_class(activate(self.hidden(pair_BD), "gelu"))

    def __call__(self, ctx: Context, key: jax.Array) -> tuple[base.Terms, dict[str, jax.Array]]:
        logits_BC, label_B = self.logits(ctx), ctx.batch[self.label]
        nll_B = optax.softmax_cross_entropy_with_integer_labels(logits_BC, label_B)
        correct_B = (jnp.argmax(logits_BC, axis=1) == label_B).astype(jnp.float32)
        return base.Terms(nll_B), {"accuracy": jnp.mean(correct_B)}

    def _compared(self, a_BD: jax.Array, b_BD: jax.Array) -> tuple[jax.Array, ...]:
        return (a_BD * b_BD, jnp.abs(a_BD - b_BD)) if self.combine == "compare" else ()

    def _replacements(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The arrays of the second pair, by the names of the first one's."""
        arrays = {}
        for modality, field in self.second:
            arrays |= (
                {"image": batch[field]}
                if modality == "image"
                else {"tokens": batch[f"{field}_tokens"], "token_valid": batch[f"{field}_valid"]}
            )
        return arrays
