"""What every objective is."""

import jax
from flax import nnx

from maskvlm_jax.context import Context, Views


class Objective(nnx.Module):
    """One loss of one paper.

    Attributes:
        views: what it reads of the context, by modality; these go through an encoder in one call.
        reads_teacher: it reads the moving average of the model, which must then be on.
        reads_negatives: it tells a pair from others of the batch, and learns nothing where there are none.
        queue: pairs of earlier batches that it reads; 0 = none.
    """

    views: Views
    reads_teacher = False
    reads_negatives = False
    queue = 0

    def __call__(self, ctx: Context, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """loss_B, one loss an example, whose mean over the batch is the loss; and scalars to log."""
        raise NotImplementedError
