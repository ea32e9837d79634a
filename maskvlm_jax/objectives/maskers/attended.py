"""Hides patches and words that the two modalities attend to: after SyncMask (Song et al. 2024, arXiv 2404.01156).

Words of a caption that nothing in the picture bears out, and patches that no word speaks of, cannot be rebuilt from the
other modality. The teacher's cross-attention tells the others: with A its weights of words to patches and B of patches
to words, both without start and end token,

    s_n = mean over heads and words t of A[h, t, n]        u_t = mean over heads and patches n of B[h, n, t]

are a patch's and a word's scores. Which layer, how many are hidden and how they are chosen by the scores is not in what
the paper's public summaries say: our choice. "top" and "hint" are AttMask's (Kakogeorgiou et al. 2022, arXiv
2203.12719), which hides what a teacher's class token attends to, and shows some of the most attended again.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from maskvlm_jax.objectives.context import Context
from maskvlm_jax.objectives.maskers import base

GUMBEL_MEDIAN = -math.log(math.log(2))


@dataclasses.dataclass(frozen=True)
class Masker(base.Masker):
    """Patches and words by their attention.

    Attributes:
        layer: of the fusion, whose weights are read; the last where it has fewer, and -1.
        sampler: "gumbel": drawn without replacement in proportion to the scores; "top": the highest scores; "hint":
            these, but each of the highest tenth is shown with probability one half, and a lower one hidden instead.
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"sampler": ("gumbel", "top", "hint")}

    layer: int = 2
    sampler: str = "gumbel"

    def __call__(self, teacher: Context, key: jax.Array) -> base.Masks:
        batch, attention = teacher.batch, teacher.attention(self.layer)
        word_BL = base.inner_words(batch["token_valid"])
        weight_BLN = jnp.mean(attention.text_BHLN, axis=1)
        patch_BN = jnp.mean(weight_BLN, axis=1, where=word_BL[:, :, None])
        patch_BN = jnp.where(jnp.any(word_BL, axis=1, keepdims=True), patch_BN, 1.0)  # no word: all patches alike
        if attention.image_BHNL is None:  # of a text stream alone
            words_BL = jnp.max(weight_BLN, axis=2)
        else:
            words_BL = jnp.mean(attention.image_BHNL, axis=(1, 2))
        image_key, text_key = jax.random.split(key)
        return base.Masks(
            self._drawn(patch_BN, batch["image_masked"], jnp.ones_like(batch["image_masked"]), teacher, image_key),
            self._drawn(words_BL, batch["text_masked"], word_BL, teacher, text_key),
        )

    def _drawn(
        self, score_BS: jax.Array, like_BS: jax.Array, allowed_BS: jax.Array, teacher: Context, key: jax.Array
    ) -> jax.Array:
        """Booleans (B, S): as many allowed positions as `like_BS` has, chosen by their scores."""
        if self.sampler == "top":
            return base.highest(score_BS, like_BS, allowed_BS)
        noise_BS = base.gumbel(key, teacher.own_rows, score_BS.shape[1])
        if self.sampler == "hint":
            tenth_B1 = -(-jnp.sum(allowed_BS, axis=1, keepdims=True) // 10)  # at least one
            shown_BS = base.highest_of(score_BS, tenth_B1, allowed_BS) & (noise_BS > GUMBEL_MEDIAN)
            # Weights are 1 at most: what is shown comes behind all others that are allowed.
            return base.highest(score_BS - 2.0 * shown_BS, like_BS, allowed_BS)
        tiny = jnp.finfo(jnp.float32).tiny
        return base.highest(jnp.log(jnp.maximum(score_BS, tiny)) + noise_BS, like_BS, allowed_BS)
