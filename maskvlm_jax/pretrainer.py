"""The model and its objectives: (batch, key) -> loss, metrics, and what later steps read of this one."""

import importlib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Optional

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax import objectives
from maskvlm_jax.context import Context, Views, Whole
from maskvlm_jax.errors import UserError
from maskvlm_jax.models.vlm import VLM
from maskvlm_jax.objectives.base import Objective
from maskvlm_jax.queue import Queue, make_queue, push

OBJECTIVES = Path(objectives.__file__).parent
NOT_OBJECTIVES = ("__init__", "base", "reduce")  # of the files there
CLEAN: Views = {"image": frozenset({"clean"}), "text": frozenset({"clean"})}


def objective_class(name: str) -> type[Objective]:
    """The class of `maskvlm_jax/objectives/<name>.py`.

    Raises:
        UserError: there is no such file.
    """
    path, found = f"maskvlm_jax.objectives.{name}", None
    try:
        found = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:  # something that the file itself imports
            raise
    if not hasattr(found, "Objective"):
        names = ", ".join(sorted(file.stem for file in OBJECTIVES.glob("*.py") if file.stem not in NOT_OBJECTIVES))
        raise UserError(f"there is no objective {name!r}; choose among {names}")
    return found.Objective


class Output(NamedTuple):
    """The weighted sum of the objectives' mean losses, metrics named `label/metric`, and the next step's queue."""

    loss: jax.Array
    metrics: dict[str, jax.Array]
    queue: Queue | None


class Pretrainer(nnx.Module):
    """A `VLM` and the objectives that train it.

    Args:
        model: arguments of `VLM`.
        objectives: label -> {"name": module under `objectives`, "weight": float, **arguments}; weight 0 = not built.
        masked_patches: number of masked patches of each image.
        text_ratio: share of masked tokens.
    """

    def __init__(
        self, *, model: dict, objectives: Mapping[str, dict], masked_patches: int, text_ratio: float, rngs: nnx.Rngs
    ):
        self.vlm = VLM(**model, rngs=rngs)
        built, weights = {}, {}
        for label, arguments in sorted(objectives.items()):
            arguments = dict(arguments)
            name, weight = arguments.pop("name"), arguments.pop("weight")
            if weight:
                built[label] = objective_class(name)(self.vlm, **arguments, shared=model["shared"], rngs=rngs)
                weights[label] = float(weight)
        self.objectives = nnx.Dict(built)
        self.weights = nnx.static(tuple(weights.items()))
        self.masked_patches, self.text_ratio = masked_patches, text_ratio

    @property
    def queue_size(self) -> int:
        """Pairs that the longest queue of an objective holds."""
        return max((objective.queue for objective in self.objectives.values()), default=0)

    def make_queue(self) -> Queue | None:
        """The empty queue that training starts from; None where no objective reads one."""
        return make_queue(self.queue_size, self.vlm.embed) if self.queue_size else None

    def context(self, batch: Mapping[str, jax.Array], *, views: Views = CLEAN, **options) -> Context:
        """A `Context` of the batch over this model; `options` are its other arguments."""
        counts = {"masked_patches": self.masked_patches, "text_ratio": self.text_ratio}
        return Context(self.vlm, batch, **counts, views=views, **options)

    def embeddings(self, batch: Mapping[str, jax.Array]) -> tuple[jax.Array | None, jax.Array | None]:
        """image_BE and text_BE of a batch, None where there is no contrastive space."""
        if not self.vlm.embed:
            return None, None
        ctx = self.context(batch)
        return ctx.image_embedding_BE, ctx.text_embedding_BE

    def constrain(self) -> None:
        """Puts parameters that have a range back into it."""
        self.vlm.constrain()

    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        key: jax.Array,
        *,
        teacher: Optional["Pretrainer"] = None,
        queue: Queue | None = None,
        whole: Whole | None = None,
        teacher_whole: Whole | None = None,
        progress: jax.Array | float = 1.0,
    ) -> Output:
        """One forward pass.

        Args:
            teacher: this model with the moving average of its parameters, for objectives that read one.
            queue: features of earlier batches; the next step's takes in this batch, but not a part of one.
            whole, teacher_whole: what the batch is a part of, as the model and its moving average embed it. The mean
                over all parts of loss and gradients is then that of the whole batch, but for dropout.
            progress: share of the training that is done, 0 to 1.
        """
        views = {
            modality: frozenset().union(*(objective.views[modality] for objective in self.objectives.values()))
            for modality in ("image", "text")
        }
        dropout_key = jax.random.fold_in(key, zlib.crc32(b"dropout"))
        ctx = self.context(
            batch,
            views=views,
            key=dropout_key if whole is None else jax.random.fold_in(dropout_key, whole.part),
            teacher=teacher and teacher.context(batch, whole=teacher_whole),
            twins=teacher and {id(own): teacher.objectives[label] for label, own in self.objectives.items()},
            queue=queue,
            whole=whole,
            progress=progress,
        )
        total, metrics = jnp.zeros((), jnp.float32), {}
        for label, weight in self.weights:
            with jax.named_scope(label):  # a profile tells the losses apart
                loss_B, values = self.objectives[label](ctx, jax.random.fold_in(key, zlib.crc32(label.encode())))
                loss = jnp.mean(loss_B)
            total += weight * loss
            metrics |= {f"{label}/loss": loss, **{f"{label}/{name}": value for name, value in values.items()}}
        if queue is not None and whole is None:
            queue = push(queue, ctx.teacher.image_embedding_BE, ctx.teacher.text_embedding_BE, batch["pair_id"])
        return Output(total, {"loss": total, **metrics}, queue)
