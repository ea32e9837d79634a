"""Classes of pictures: ℓ = H(y, softmax W pool(f_im(I))), one dense layer on the image encoder.

The class is what the source knows of a picture: `config.data.fields.label` names its key, says how many classes there
are and, where the source has names, gives these in the order of their numbers. Of generated scenes it is how many
objects there are.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from maskvlm_jax.data.evaluation_set import padded
from maskvlm_jax.evaluators import base as evaluators
from maskvlm_jax.evaluators.predictor import Predictor
from maskvlm_jax.models.layers import Dense
from maskvlm_jax.models.pooling import pool
from maskvlm_jax.models.vlm import VLM
from maskvlm_jax.objectives import base
from maskvlm_jax.objectives.context import Context
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime.errors import UserError


def task(config: ConfigDict, here: str) -> None:
    key, classes = ("objects.count", (1, 2, 3)) if config.data.get("source") == "scenes" else ("label", ())
    label = ConfigDict({"name": "label", "key": key, "classes": classes, "count": len(classes)})
    config.data.fields.label = label
    # One value, by either name.
    classes = label.get_ref("count")
    config.objectives.classification = ConfigDict({"name": here, "weight": 1.0, "classes": classes, "pooling": "mean"})
    config.evals = ConfigDict({"classification": {"name": here, "during": True}})
    config.optim.freeze = ("^vlm/(?!image_encoder/)",)  # nothing else is read


class Classifies:
    """Role: tells the class of a picture."""


class Objective(base.Objective, Classifies):
    """The cross entropy of the class.

    Args:
        vlm: the model.
        shared: block arguments shared with the model.
        classes: how many there are.
        pooling: what is read of the encoder's output, see `models.pooling.pool`.
    """

    choices: ClassVar = {"pooling": ("first", "mean", "both")}

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


def _ranks(learner: Learner, batch: Mapping[str, jax.Array]) -> jax.Array:
    """rank_B: how many other classes are not thought less likely than the right one."""
    logits_BC = learner.offering(Classifies).logits(learner.context(batch))
    right_B1 = jnp.take_along_axis(logits_BC, batch["label"][:, None], axis=1)
    return jnp.sum(~(logits_BC < right_B1), axis=1) - 1


class Evaluator(evaluators.Evaluator):
    """Shares of the pictures, in percent: classified right, right among the first five, and right of the mean class."""

    best = ("classification_accuracy",)

    @classmethod
    def metrics(cls, objectives: Mapping[str, type]) -> tuple[str, ...]:
        if base.objective_of(objectives, Classifies) is None:
            return ()
        return ("classification_accuracy", "classification_accuracy_5", "classification_accuracy_per_class")

    def evaluate(self, predictor: Predictor, split: str, *, final: bool) -> Iterator[tuple[str, float]]:
        if not predictor.offers(Classifies):
            return
        data, size = self.run.data(split), self.options["batch_size"]
        ranks, labels = [], []
        for start in range(0, len(data.images), size):
            pictures, valid = padded(np.arange(start, min(start + size, len(data.images))), size)
            batch = data.batch(pictures, data.first_captions[pictures], valid)
            ranks.append(predictor.fetch(_ranks, batch)[valid])
            labels.append(batch["label"][valid])
        rank_I, label_I = np.concatenate(ranks), np.concatenate(labels)
        right_I = rank_I == 0
        yield "classification_accuracy", 100.0 * float(right_I.mean())
        yield "classification_accuracy_5", 100.0 * float((rank_I < 5).mean())
        per_class = [right_I[label_I == label].mean() for label in np.unique(label_I)]
        yield "classification_accuracy_per_class", 100.0 * float(np.mean(per_class))
