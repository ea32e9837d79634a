"""The model and its objectives: (batch, key) -> loss, metrics, and what later steps read of this one."""

import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Optional

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models import auxiliary
from maskvlm_jax.models.vlm import VLM
from maskvlm_jax.objectives import base, reduce
from maskvlm_jax.objectives.context import Context, Views
from maskvlm_jax.objectives.feature_queue import Queue, make_queue, push
from maskvlm_jax.objectives.full_batch import FullBatch
from maskvlm_jax.objectives.maskers import base as maskers
from maskvlm_jax.settings.needs import masker_class
from maskvlm_jax.settings.rules import objective_class

CLEAN: Views = {"image": frozenset({"clean"}), "text": frozenset({"clean"})}


class Output(NamedTuple):
    """The weighted sum of the objectives' mean losses, metrics named `label/metric`, the next step's queue, and what
    objectives that keep something saw of the batch."""

    loss: jax.Array
    metrics: dict[str, jax.Array]
    queue: Queue | None
    seen: dict[str, Any]


Counts = dict[str, tuple[reduce.Count, ...]]  # label -> what the mean of each of its terms is taken over
Kept = dict[str, dict[str, jax.Array]]  # label -> what an objective keeps from step to step, of those that do


class Learner(nnx.Module):
    """A `VLM` and the objectives that train it.

    Args:
        model: arguments of `VLM`.
        objectives: label -> {"name": of a file of objectives, "weight": float, **arguments}; weight 0 = not built.
        masked_patch_count: number of masked patches of each image.
        text_ratio: share of masked tokens.
        masker: {"name": of a file of maskers, **options}, which draws masks in the step; {} = the host's are kept.
    """

    def __init__(
        self,
        *,
        model: dict,
        objectives: Mapping[str, dict],
        masked_patch_count: int,
        text_ratio: float,
        masker: Mapping[str, Any] | None = None,
        rngs: nnx.Rngs,
    ):
        self.vlm = VLM(**model, rngs=rngs)
        built, weights, common = {}, {}, {}
        for label, arguments in sorted(objectives.items()):
            arguments = dict(arguments)
            name, weight = arguments.pop("name"), arguments.pop("weight")
            if weight:
                own = objective_class(name)(self.vlm, **arguments, shared=model["shared"], rngs=rngs)
                for part in own.shares:
                    setattr(own, part, common.setdefault(part, getattr(own, part)))
                built[label], weights[label] = own, float(weight)
        # Found before `objectives`, by their names: what is shared is not stored under the label of one that shares it.
        self.common = nnx.Dict(common)
        self.objectives = nnx.Dict(built)
        self.weights = nnx.static(tuple(weights.items()))
        self.masked_patch_count, self.text_ratio = masked_patch_count, text_ratio
        options = dict(masker or {})
        self.masker = nnx.static(masker_class(options.pop("name"))(**options) if options else None)

    def offering(self, role: type[base.Role]) -> base.Role | None:
        """The objective of a role, see `objectives.base`; None if there is none."""
        return base.objective_of(self.objectives, role)

    @property
    def queue_size(self) -> int:
        """Pairs that the longest queue of an objective holds."""
        return max((objective.queue for objective in self.objectives.values()), default=0)

    def make_queue(self) -> Queue | None:
        """The empty queue that training starts from; None if no objective reads one."""
        return make_queue(self.queue_size, self.vlm.embed) if self.queue_size else None

    def first_kept(self) -> Kept:
        """What objectives keep, before the first step."""
        return {label: kept for label, objective in self.objectives.items() if (kept := objective.first_kept())}

    def next_kept(self, kept: Kept, seen: Mapping[str, Any]) -> Kept:
        """The same after a step; `seen` is of `Output`."""
        return {label: self.objectives[label].next_kept(own, seen[label]) for label, own in kept.items()}

    def context(self, batch: Mapping[str, jax.Array], *, views: Views = CLEAN, **options) -> Context:
        """A `Context` of the batch over this model; `options` are its other arguments."""
        counts = {"masked_patch_count": self.masked_patch_count, "text_ratio": self.text_ratio}
        return Context(self.vlm, batch, **counts, views=views, **options)

    def embeddings(self, batch: Mapping[str, jax.Array]) -> tuple[jax.Array | None, jax.Array | None]:
        """image_BE and text_BE of a batch, None if there is no contrastive space."""
        if not self.vlm.embed:
            return None, None
        ctx = self.context(batch)
        return ctx.image_embedding_BE, ctx.text_embedding_BE

    def constrain(self) -> None:
        """Puts parameters that have a range back into it."""
        self.vlm.constrain()

    def _context_of_step(
        self,
        batch: Mapping[str, jax.Array],
        key: jax.Array,
        *,
        teacher: Optional["Learner"] = None,
        queue: Queue | None = None,
        kept: Kept | None = None,
        full: FullBatch | None = None,
        teacher_full: FullBatch | None = None,
        progress: jax.Array | float = 1.0,
        remask: bool = True,
    ) -> Context:
        """What the objectives read in a step; arguments as in `__call__`.

        Args:
            remask: hide what the masker chooses; without it what the host did, which is as much.
        """
        views = {
            modality: frozenset().union(*(objective.views[modality] for objective in self.objectives.values()))
            for modality in ("image", "text")
        }
        dropout_key = jax.random.fold_in(key, zlib.crc32(b"dropout"))
        teaching = teacher and teacher.context(batch, full=teacher_full, silent=True)
        if remask and self.masker is not None:
            masks = maskers.apply(self.masker, teaching, jax.random.fold_in(key, zlib.crc32(b"masker")))
            batch, teaching = {**batch, **masks}, teaching.with_masks(masks)
        ctx = self.context(
            batch,
            views=views,
            key=dropout_key if full is None else jax.random.fold_in(dropout_key, full.part),
            teacher=teaching,
            teacher_heads=teacher and {id(own): teacher.objectives[label] for label, own in self.objectives.items()},
            queue=queue,
            full=full,
            progress=progress,
        )
        ctx.kept = {id(self.objectives[label]): own for label, own in (kept or {}).items()}
        return ctx

    def _terms(
        self, ctx: Context, key: jax.Array
    ) -> Iterator[tuple[str, float, tuple[base.Terms, ...], dict[str, jax.Array], list[Any]]]:
        """(label, weight, terms, metrics, [what it saw, if it keeps something]) of each objective; those that read what
        blocks hand out come last."""
        # The collector stays set between what is yielded: `counts` and `__call__` take all of it, in one context.
        last = [label for label, objective in self.objectives.items() if objective.reads_auxiliary]
        with auxiliary.collecting(wanted=bool(last)) as ctx.auxiliary:
            for label, weight in sorted(self.weights, key=lambda item: item[0] in last):
                with jax.named_scope(label):  # a profile tells the losses apart
                    own_key = jax.random.fold_in(key, zlib.crc32(label.encode()))
                    terms, metrics, *seen = self.objectives[label](ctx, own_key)
                yield label, weight, (terms,) if isinstance(terms, base.Terms) else terms, metrics, seen

    def counts(self, batch: Mapping[str, jax.Array], key: jax.Array, **options) -> Counts:
        """What the means of each loss are taken over in a batch; arguments as in `__call__`.

        It is a function of the masks alone, and how many they hide those of the host say, unless a loss reads what
        blocks hand out.
        """
        remask = any(objective.reads_auxiliary for objective in self.objectives.values())
        ctx = self._context_of_step(batch, key, remask=remask, **options)
        return {label: tuple(map(reduce.count, terms)) for label, _, terms, *_ in self._terms(ctx, key)}

    def __call__(
        self, batch: Mapping[str, jax.Array], key: jax.Array, *, counts: Counts | None = None, **options
    ) -> Output:
        """One forward pass.

        Args:
            teacher: this model with the moving average of its parameters, for objectives that read one.
            queue: features of earlier batches; the next step's takes in this batch, but not a part of one.
            kept: what objectives keep from step to step.
            full, teacher_full: what the batch is a part of, as the model and its moving average embed it. The mean
                over all parts of loss and gradients is then that of the full batch, but for dropout.
            counts: mean counts of an example of the full batch, if this is a part of it.
            progress: share of the training that is done, 0 to 1.
        """
        ctx = self._context_of_step(batch, key, **options)
        total, metrics, observed = jnp.zeros((), jnp.float32), {}, {}
        for label, weight, terms, values, seen in self._terms(ctx, key):
            with jax.named_scope(label):
                loss, means = reduce.loss_of(terms, None if counts is None else counts[label])
            total += weight * loss
            metrics |= {f"{label}/loss": loss, **{f"{label}/{name}": value for name, value in (values | means).items()}}
            if seen:
                (observed[label],) = seen
        queue = ctx.queue
        if queue is not None and ctx.full is None:
            queue = push(queue, ctx.teacher.image_embedding_BE, ctx.teacher.text_embedding_BE, batch["pair_id"])
        return Output(total, {"loss": total, **metrics}, queue, observed)
