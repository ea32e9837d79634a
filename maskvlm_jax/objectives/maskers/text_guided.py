"""Hides patches that the caption speaks of: after SemMIM (Liu et al. 2024, arXiv 2403.00249).

Of each patch n the moving average tells, of the unmasked pair, how much the caption as a whole is about it,

    log s_n = log mean over heads of A[h, 0, n]        or        cos( v̂_n, ŵ_0 )

A: weights of words to patches in one layer of the fusion, of which row 0 is the start token's; v̂, ŵ: what the encoders
make of patches and of the start token. Hidden are the patches with the highest β log s_n + Gumbel noise, for β = 1 a
sample without replacement in proportion to s. That text guides the masks is the paper's idea; by which score and how
sharply is not in its public summaries: our choice.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from maskvlm_jax.models.vlm import normalize
from maskvlm_jax.objectives.base import Needs
from maskvlm_jax.objectives.context import Context
from maskvlm_jax.objectives.maskers import base


@dataclasses.dataclass(frozen=True)
class Masker(base.Masker):
    """Patches by what the start token makes of them; words stay as the host has masked them.

    Attributes:
        by: "attention" of the start token, or its "cosine" with patches.
        layer: of the fusion, whose weights are read; the last where it has fewer.
        hardness: β; 0 draws at random.
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"by": ("attention", "cosine")}
    hides_words: ClassVar[bool] = False

    by: str = "attention"
    layer: int = 2
    hardness: float = 1.0

    def needs(self) -> Needs:
        return Needs(teacher=True, fusion=self.by == "attention")

    def __call__(self, teacher: Context, key: jax.Array) -> base.Masks:
        score_BN = self._attention(teacher) if self.by == "attention" else self._cosine(teacher)
        drawn_BN = self.hardness * score_BN + base.gumbel(key, teacher.own_rows, score_BN.shape[1])
        return base.Masks(base.highest(drawn_BN, teacher.batch["image_masked"]), None)

    def _attention(self, teacher: Context) -> jax.Array:
        weight_BN = jnp.mean(teacher.attention(self.layer).text_BHLN[:, :, 0], axis=1)
        return jnp.log(jnp.maximum(weight_BN, jnp.finfo(jnp.float32).tiny))

    def _cosine(self, teacher: Context) -> jax.Array:
        patch_BND = teacher.image("clean")[:, teacher.vlm.image_encoder.prefix :].astype(jnp.float32)
        start_BD = teacher.text("clean")[:, 0].astype(jnp.float32)
        return jnp.einsum("bnd,bd->bn", normalize(patch_BND), normalize(start_BD))
