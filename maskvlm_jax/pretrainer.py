"""The model and its objectives: (batch, key) -> loss, metrics."""

import importlib
import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.context import Context, Views
from maskvlm_jax.models.vlm import VLM

CLEAN: Views = {"image": frozenset({"clean"}), "text": frozenset({"clean"})}


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
                module = importlib.import_module(f"maskvlm_jax.objectives.{name}")
                built[label] = module.Objective(self.vlm, **arguments, shared=model["shared"], rngs=rngs)
                weights[label] = float(weight)
        self.objectives = nnx.Dict(built)
        self.weights = nnx.static(tuple(weights.items()))
        self.masked_patches, self.text_ratio = masked_patches, text_ratio

    def context(self, batch: Mapping[str, jax.Array], *, views: Views = CLEAN, key: jax.Array | None = None) -> Context:
        """A `Context` of the batch over this model."""
        return Context(
            self.vlm,
            batch,
            masked_patches=self.masked_patches,
            text_ratio=self.text_ratio,
            views=views,
            key=key,
        )

    def __call__(self, batch: Mapping[str, jax.Array], key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The weighted sum of the objectives' mean losses, and metrics named `label/metric`."""
        views = {
            modality: frozenset().union(*(objective.views[modality] for objective in self.objectives.values()))
            for modality in ("image", "text")
        }
        ctx = self.context(batch, views=views, key=jax.random.fold_in(key, zlib.crc32(b"dropout")))
        total, metrics = jnp.zeros((), jnp.float32), {}
        for label, weight in self.weights:
            loss_B, values = self.objectives[label](ctx, jax.random.fold_in(key, zlib.crc32(label.encode())))
            loss = jnp.mean(loss_B)
            total += weight * loss
            metrics |= {f"{label}/loss": loss, **{f"{label}/{name}": value for name, value in values.items()}}
        return total, {"loss": total, **metrics}
