"""What a linear layer on frozen features of pictures tells of their classes (CLIP, arXiv 2103.00020, A.3).

The regularisation is chosen by accuracy on the validation split; where that is scored itself, on every fifth training
example, after a fit to the others. Pictures are read as in every evaluation: none is augmented.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from maskvlm_jax.evaluators import encoding, logistic
from maskvlm_jax.evaluators.classes import Classes, Predictions, names_of
from maskvlm_jax.evaluators.predictor import Predictor
from maskvlm_jax.evaluators.scored_run import ScoredRun
from maskvlm_jax.models.pooling import pool
from maskvlm_jax.models.vision import normalised
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime.errors import UserError

_HELD_OUT = 5  # one example in so many


def _embedding(learner: Learner, batch: Mapping[str, jax.Array]) -> jax.Array:
    return learner.vlm.embed_image(learner.vlm.encode_image(normalised(batch["image"])))


def _pooled(learner: Learner, batch: Mapping[str, jax.Array]) -> jax.Array:
    vlm = learner.vlm
    image_BSD = vlm.encode_image(normalised(batch["image"]))
    return pool(image_BSD, vlm.image_pooling, vlm.image_attention, before=vlm.image_encoder.prefix)


def _of_kind(kind: str, learner: Learner, batch: Mapping[str, jax.Array]) -> jax.Array:
    vlm = learner.vlm
    return pool(vlm.encode_image(normalised(batch["image"])), kind, before=vlm.image_encoder.prefix)


def _first(learner: Learner, batch: Mapping[str, jax.Array]) -> jax.Array:
    return _of_kind("first", learner, batch)


def _mean(learner: Learner, batch: Mapping[str, jax.Array]) -> jax.Array:
    return _of_kind("mean", learner, batch)


# embedding: in the contrastive space, of unit length. pooled: what is projected into it. first: the class token, or
# what else stands first. mean: of the patches.
FEATURES = {"embedding": _embedding, "pooled": _pooled, "first": _first, "mean": _mean}


class Probe(NamedTuple):
    """A fit, the C that was chosen, on which examples, and how many it was fitted to."""

    fit: logistic.Fit
    strength: float
    chosen_on: str
    examples: int


class Evaluator(Classes):
    """linear_probe_accuracy and linear_probe_accuracy_per_class, in percent; of another label than `label`
    linear_probe_LABEL_accuracy.

    Options: `label`, the array that holds the right class; `features`, one of `FEATURES`; `train_limit`, so many
    training examples, spread evenly over the split, 0 = all; `steps` of a fit at most.
    """

    _probe: Probe | None = None

    def __init__(self, run: ScoredRun, options: Mapping[str, Any]):
        super().__init__(run, options)
        if options["features"] not in FEATURES:
            raise UserError(f"features {options['features']!r} are none; choose among {', '.join(FEATURES)}")
        if options["features"] in ("embedding", "pooled") and not run.config.model.embed:
            raise UserError(
                f"the model has no contrastive space, which features={options['features']} reads; take mean"
            )
        self.prefix = "linear_probe" + ("" if options["label"] == "label" else f"_{options['label']}")

    @classmethod
    def metrics(cls, objectives: Mapping[str, type]) -> tuple[str, ...]:
        return ()  # their names are known of an instance alone

    def prepare(self, predictor: Predictor) -> None:
        self._probe = self._fitted(predictor, (self.options["split"], *self.options["extra_splits"]))

    def evaluate(self, predictor: Predictor, split: str, *, final: bool) -> Iterator[tuple[str, float]]:
        if self._probe is None or not final:
            self._probe = self._fitted(predictor, (split,))
        yield from super().evaluate(predictor, split, final=final)

    def names(self, split: str) -> tuple[str, ...]:
        return names_of(self.run, self.options["label"], split)

    def predictions(self, predictor: Predictor, split: str) -> Predictions:
        probe = self._probe
        feature_IF, label_I = self._features(predictor, split, None)
        classes = probe.fit.bias_C.shape[0]
        logits_IC = probe.fit.logits(feature_IF)
        if label_I.max() >= classes:  # which no training example has: never right
            unseen_IC = np.full((len(logits_IC), label_I.max() + 1 - classes), -np.inf)
            logits_IC = np.concatenate([logits_IC, unseen_IC], axis=1)
        return Predictions.of(logits_IC, label_I)

    def protocol(self, split: str) -> dict[str, Any]:
        if self._probe is None:
            return {}
        probe = self._probe
        told = {"features": self.options["features"], "train_images": probe.examples, "C": probe.strength}
        return {self.prefix: told | {"C_chosen_on": probe.chosen_on, "steps": probe.fit.steps}}

    def _fitted(self, predictor: Predictor, scored: tuple[str, ...]) -> Probe:
        """The probe of the training split; C is not chosen on a split that is scored."""
        options = self.options
        feature_IF, label_I = self._features(predictor, self.run.config.data.split, options["train_limit"])
        classes = max(len(self.names(options["split"])), int(label_I.max()) + 1)
        held_out, chosen_on = np.arange(len(label_I)) % _HELD_OUT == 0, options["validation_split"]
        if len(label_I) < 2:
            raise UserError("a probe is fitted to two training examples at least; raise train_limit")
        if chosen_on in scored:
            chosen_on = f"every fifth example of {self.run.config.data.split}"
            fitted = feature_IF[~held_out], label_I[~held_out]
            others = feature_IF[held_out], label_I[held_out]
        else:
            fitted, others = (feature_IF, label_I), self._features(predictor, chosen_on, None)

        def accuracy(strength: float) -> float:
            found = logistic.fit(*fitted, classes, strength, steps=options["steps"])
            return float(np.mean(found.logits(others[0]).argmax(axis=1) == others[1]))

        strength = logistic.choose(accuracy)
        found = logistic.fit(feature_IF, label_I, classes, strength, steps=options["steps"])
        return Probe(found, strength, chosen_on, len(label_I))

    def _features(self, predictor: Predictor, split: str, spread: int | None) -> tuple[np.ndarray, np.ndarray]:
        """feature_IF and label_I of a split, see `ScoredRun.data`."""
        data, function = self.run.data(split, spread), FEATURES[self.options["features"]]
        ids = np.arange(len(data.images))

        def features(ids: np.ndarray) -> tuple[np.ndarray]:
            return (predictor.fetch(function, {"image": data.images[ids]}),)

        (feature_IF,) = encoding.in_batches(features, ids, self.options["batch_size"])
        return feature_IF.astype(np.float32), np.asarray(data.of_picture[self.options["label"]][ids])
