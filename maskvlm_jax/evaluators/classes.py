"""Shares of the examples whose class is told right, and which classes are taken for which.

A task's own `Evaluator` is a subclass of `Classes` that names its metrics. It reads a model with an objective that
`Classifies`; one that tells classes in another way has `predictions` of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from maskvlm_jax.evaluators import base, confusion, encoding
from maskvlm_jax.evaluators.predictor import Predictor
from maskvlm_jax.evaluators.scored_run import ScoredRun
from maskvlm_jax.objectives.base import Classifies, label_of, objective_of
from maskvlm_jax.objectives.learner import Learner


def logits_of(learner: Learner, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """logits_BC of the objective that `Classifies`, and label_B, the right classes."""
    objective = learner.offering(Classifies)
    return objective.logits(learner.context(batch)), batch[objective.label]


class Predictions(NamedTuple):
    """Of each example of a split: the class that is told, the rank of the right one (0 = it is told), the right one."""

    told_I: np.ndarray
    rank_I: np.ndarray
    label_I: np.ndarray

    @classmethod
    def of(cls, logits_IC: np.ndarray, label_I: np.ndarray) -> "Predictions":
        """What logits tell; a class that is as likely as the right one, or whose logit is no number, is before it."""
        right_I1 = np.take_along_axis(logits_IC, label_I[:, None], axis=1)
        return cls(logits_IC.argmax(axis=1), np.sum(~(logits_IC < right_I1), axis=1) - 1, label_I)

    @property
    def right_I(self) -> np.ndarray:
        """Whether the right class is told; a tie is not."""
        return self.rank_I == 0


class Classes(base.Evaluator):
    """PREFIX_accuracy and PREFIX_accuracy_per_class, of the mean class, in percent.

    An example is a picture with its first caption, and what the fields make of it.

    Attributes:
        prefix: of the metrics' names.
        first: PREFIX_accuracy_K for each K of these: the right class is among the K likeliest.
    """

    prefix: ClassVar[str] = "class"
    first: ClassVar[tuple[int, ...]] = ()
    _found: Mapping[str, Predictions] = {}

    @classmethod
    def metrics(cls, objectives: Mapping[str, type]) -> tuple[str, ...]:
        return cls.names_of_metrics() if objective_of(objectives, Classifies) else ()

    @classmethod
    def names_of_metrics(cls) -> tuple[str, ...]:
        """What `evaluate` yields."""
        ranked = (f"{cls.prefix}_accuracy_{k}" for k in cls.first)
        return (f"{cls.prefix}_accuracy", *ranked, f"{cls.prefix}_accuracy_per_class")

    def evaluate(self, predictor: Predictor, split: str, *, final: bool) -> Iterator[tuple[str, float]]:
        found = self.predictions(predictor, split)
        if found is not None:
            self._found = {**self._found, split: found}
            yield from self.scores(found, split)

    def scores(self, found: Predictions, split: str) -> Iterator[tuple[str, float]]:
        """(name, value) of each metric of a split, by what the model tells of its examples, in their order."""
        right_I = found.right_I
        yield f"{self.prefix}_accuracy", 100.0 * float(right_I.mean())
        for k in self.first:
            yield f"{self.prefix}_accuracy_{k}", 100.0 * float((found.rank_I < k).mean())
        per_class = [right_I[found.label_I == label].mean() for label in np.unique(found.label_I)]
        yield f"{self.prefix}_accuracy_per_class", 100.0 * float(np.mean(per_class))

    def figures(self, predictor: Predictor, split: str) -> base.Figures:
        """Which classes are taken for which."""
        found = self._found.get(split) if self.options["figures"] else None
        if found is None:
            return base.Figures({}, {})
        sheet = confusion.sheet(found.label_I, found.told_I, self.names(split))
        return base.Figures({} if sheet is None else {f"{self.prefix}_confusion": sheet}, {})

    def names(self, split: str) -> Sequence[str]:
        """Names of the classes, in the order of their numbers; () = they have none."""
        objective = label_of(self.run.objectives, Classifies)
        options = {} if objective is None else self.run.config.objectives[objective]
        return names_of(self.run, options.get("label", "label"), split)

    def predictions(self, predictor: Predictor, split: str) -> Predictions | None:
        """What the model tells of each example of a split; None if it tells no classes."""
        if not predictor.offers(Classifies):
            return None
        return Predictions.of(*self.fetched(predictor, split, logits_of))

    def fetched(
        self, predictor: Predictor, split: str, function: Callable[..., tuple[jax.Array, ...]]
    ) -> tuple[np.ndarray, ...]:
        """Each of the arrays that function(learner, batch) gives, of all examples of a split."""
        return encoding.of_examples(predictor, self.run.data(split), self.options["batch_size"], function)


def names_of(run: ScoredRun, label: str, split: str) -> tuple[str, ...]:
    """Names of the classes that an array of the batch numbers: those of its field, or the source's own; () = none."""
    return told_names(run.config, label) or run.data(split).classes


def told_names(config: ConfigDict, label: str) -> tuple[str, ...]:
    """Those that the config has of a field's classes; () = none."""
    return tuple(map(str, config.data.fields.get(label, {}).get("classes", ())))
