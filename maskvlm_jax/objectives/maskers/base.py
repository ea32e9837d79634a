"""What chooses on the device which patches and words are hidden, and how a new way is written.

By default masks are drawn on the host, a function of seed and position alone. A masker draws them anew in the step from
what the moving average of the model sees in the unmasked pair. It is a file of this folder, or any other by its path,
named by `config.masking.masker = {name, ...}`, with a class `Masker`. `attended` is an example.

It hides as many patches and words of each example as the host had hidden, so that shapes, counts and the means over
microbatches stay what they are. Evaluation reads the host's masks, which are the same for every model.
"""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from maskvlm_jax.objectives.base import Needs
from maskvlm_jax.objectives.context import Context


class Masks(NamedTuple):
    """image_masked_BN and text_masked_BL, booleans: what is hidden. None leaves a modality's as they are."""

    image_masked_BN: jax.Array | None
    text_masked_BL: jax.Array | None


class Masker:
    """Built as `Masker(**options)`; it has no parameters.

    Attributes:
        choices: options that are one of a few words.
        hides_words: it chooses words too; where it does not, the host's corruption of them stays.
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    hides_words: ClassVar[bool] = True

    def needs(self) -> Needs:
        """What it needs, with its options."""
        return Needs(teacher=True, fusion=True)

    def __call__(self, teacher: Context, key: jax.Array) -> Masks:
        """What is hidden of each example of the teacher's batch.

        Args:
            teacher: the batch over the moving average of the parameters; its masks are the host's.
            key: of the step. What is drawn for an example must depend on `teacher.own_rows` alone beside it, see
                `gumbel`, so that an example is masked alike in microbatches.
        """
        raise NotImplementedError


def apply(masker: Masker, teacher: Context, key: jax.Array) -> dict[str, jax.Array]:
    """The arrays of the batch that a masker changes; hidden words are the mask token in the masked view."""
    masks, batch = masker(teacher, key), teacher.batch
    changed = {} if masks.image_masked_BN is None else {"image_masked": masks.image_masked_BN}
    if masks.text_masked_BL is not None:
        seen = jnp.where(masks.text_masked_BL, teacher.vlm.text_encoder.mask_id, batch["tokens"])
        changed |= {"text_masked": masks.text_masked_BL, "tokens_masked": seen}
    return changed


def highest(score_BS: jax.Array, like_BS: jax.Array, allowed_BS: jax.Array | None = None) -> jax.Array:
    """Booleans (B, S): the allowed positions of the highest scores, as many in each row as `like_BS` has."""
    return highest_of(score_BS, jnp.sum(like_BS, axis=1, keepdims=True), allowed_BS)


def highest_of(score_BS: jax.Array, count_B1: jax.Array, allowed_BS: jax.Array | None = None) -> jax.Array:
    """The same, `count_B1` of each row."""
    score_BS = score_BS if allowed_BS is None else jnp.where(allowed_BS, score_BS, -jnp.inf)
    rank_BS = jnp.argsort(jnp.argsort(-score_BS, axis=1), axis=1)
    return rank_BS < count_B1


def gumbel(key: jax.Array, rows_B: jax.Array, size: int) -> jax.Array:
    """Gumbel noise (B, size), each row's a function of the key and the row's number.

    Added to logarithms of scores, its highest values are a sample without replacement in proportion to the scores.
    """
    return jax.vmap(lambda row: jax.random.gumbel(jax.random.fold_in(key, row), (size,)))(rows_B)


def inner_words(token_valid_BL: jax.Array) -> jax.Array:
    """Booleans (B, L): words between the start and the end token, which may be hidden."""
    place_L, length_B1 = jnp.arange(token_valid_BL.shape[1]), jnp.sum(token_valid_BL, axis=1, keepdims=True)
    return (place_L > 0) & (place_L < length_B1 - 1)
