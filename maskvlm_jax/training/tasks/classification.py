"""Classes of pictures: ℓ = H(y, softmax W pool(f_im(I))), one dense layer on the image encoder.

The class is what the source knows of a picture: `config.data.fields.label` names its key, says how many classes there
are and, where the source has names, gives these in the order of their numbers. Of generated scenes it is how many
objects there are; of files (data=files) the name of the folder that a picture is in, see `data.sources.image_folder`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from maskvlm_jax.evaluators.classes import Classes
from maskvlm_jax.models.layers import Dense
from maskvlm_jax.models.pooling import pool
from maskvlm_jax.models.vlm import VLM
from maskvlm_jax.objectives import base
from maskvlm_jax.objectives.context import Context
from maskvlm_jax.runtime.errors import UserError


def task(config: ConfigDict, here: str) -> None:
    read_folders(config)
    key, classes = ("objects.count", (1, 2, 3)) if config.data.get("source") == "scenes" else ("label", ())
    label = ConfigDict({"name": "label", "key": key, "classes": classes, "count": len(classes)})
    config.data.fields.label = label
    # One value, by either name.
    classes = label.get_ref("count")
    config.objectives.classification = ConfigDict({"name": here, "weight": 1.0, "classes": classes, "pooling": "mean"})
    config.evals = ConfigDict({"classification": {"name": here, "during": True}})
    if config.model.text.kind != "none":
        config.optim.freeze = ("^vlm/(?!image_encoder/)",)  # nothing else is read


def read_folders(config: ConfigDict) -> None:
    """Reads folders of classes, those of the splits' names, where files are asked for."""
    if config.data.get("source") == "files":
        config.data.source, config.data.images = "image_folder", ""
        config.data.splits = ConfigDict({split: split for split in ("train", "val", "test")})


class Objective(base.Objective, base.Classifies):
    """The cross entropy of the class.

    Args:
        vlm: the model.
        shared: block arguments shared with the model.
        classes: how many there are.
        pooling: what is read of the encoder's output, see `models.pooling.pool`.
    """

    choices: ClassVar = {"pooling": ("first", "mean", "both")}
    label = "label"

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> base.Needs:
        if arguments["classes"] < 1:
            raise UserError("how many classes are there? set --config.data.fields.label.count")
        return base.Needs(fields=("label",))

    def __init__(self, vlm: VLM, *, shared: dict, classes: int, pooling: str = "mean", rngs):
        width = vlm.image_encoder.width * (2 if pooling == "both" else 1)
        self.to_class = Dense(width, classes, init_std=None, exact=True, rngs=rngs)
        self.pooling = pooling
        self.views = {"image": frozenset({"clean"}), "text": frozenset()}

    def logits(self, ctx: Context) -> jax.Array:
        """logits_BC of the classes."""
        return self.to_class(pool(ctx.image("clean"), self.pooling, before=ctx.vlm.image_encoder.prefix))

    def __call__(self, ctx: Context, key: jax.Array) -> tuple[base.Terms, dict[str, jax.Array]]:
        logits_BC, label_B = self.logits(ctx), ctx.batch["label"]
        nll_B = optax.softmax_cross_entropy_with_integer_labels(logits_BC, label_B)
        correct_B = (jnp.argmax(logits_BC, axis=1) == label_B).astype(jnp.float32)
        return base.Terms(nll_B), {"accuracy": jnp.mean(correct_B)}


class Evaluator(Classes):
    """Shares of the pictures, in percent: classified right, right among the first five, and right of the mean class."""

    best = ("classification_accuracy",)
    prefix, first = "classification", (5,)
