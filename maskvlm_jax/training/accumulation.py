"""The gradients of a full batch from its microbatches, one after the other in memory.

Negatives included: embeddings of the full batch are computed first, without a gradient, and each microbatch puts its
own in their place (as GradCache, arXiv 2101.06983); hard negatives of other microbatches are encoded once more.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.objectives.full_batch import FullBatch

Arrays = Mapping[str, jax.Array]
Embeddings = tuple[jax.Array | None, jax.Array | None]


def gradients_of_parts(
    gradients: Callable[..., tuple[Any, Any]],
    counts: Callable[..., Any],
    model: nnx.Module,
    teacher: nnx.Module | None,
    batch: Arrays,
    parts: int,
) -> tuple[Any, Any, Embeddings]:
    """Means over microbatches of gradients and metrics, and the teacher's embeddings of the full batch.

    Args:
        gradients: (microbatch, full=, teacher_full=, counts=) -> (gradients, metrics and what else is a mean over
            examples).
        counts: (microbatch, full=, teacher_full=) -> a `reduce.Count` of each term of each loss in it.
        teacher: the model with the moving average of its parameters; None if there is none.
        parts: how many microbatches; it divides the batch.
    """
    # Every `parts`-th example, so that no example leaves its device.
    cut = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), dict(batch))

    def embed(network: nnx.Module | None) -> Embeddings:
        if network is None:
            return None, None
        embeddings = jax.lax.map(network.embeddings, cut)
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, x.shape[-1]), embeddings)

    own, momentum = embed(model), embed(teacher)

    def full(number: jax.Array) -> dict[str, FullBatch]:
        batches = {"full": FullBatch(batch, *own, number, parts)}
        if teacher is not None:
            batches["teacher_full"] = FullBatch(batch, *momentum, number, parts)
        return batches

    numbered = (jnp.arange(parts), cut)
    # Counts follow from masks: of all else in this pass nothing is read, and the compiler leaves it out. Where a loss
    # has a factor, which is a mean of what blocks hand out, they run.
    counted = jax.lax.map(lambda part: counts(part[1], **full(part[0])), numbered)
    size = len(jax.tree.leaves(batch)[0])
    counted = jax.tree.map(lambda x: jnp.sum(x, axis=0) / size, counted)

    def of_part(number: jax.Array, part: Arrays) -> tuple[Any, Any]:
        return gradients(part, counts=counted, **full(number))

    shapes = jax.eval_shape(of_part, *jax.tree.map(lambda x: x[0], numbered))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    add = lambda total, part: (jax.tree.map(jnp.add, total, of_part(*part)), None)  # noqa: E731
    total, _ = jax.lax.scan(add, zeros, numbered)
    return *jax.tree.map(lambda x: x / parts, total), momentum
