"""What every evaluator is: one file, named by a line of `config.evals`.

    config.evals.LABEL = {"name": "retrieval", "during": True, **options}

An evaluator's compiled functions are in its own file: functions of (learner, *arrays) that `Predictor.call` compiles.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from maskvlm_jax.evaluators.predictor import Predictor
from maskvlm_jax.evaluators.scored_run import ScoredRun


class Figures(NamedTuple):
    """Sheets, (Y, X, 3) uint8, and pages of Markdown, by name."""

    sheets: Mapping[str, np.ndarray]
    pages: Mapping[str, str]


class Evaluator:
    """One kind of score.

    Args:
        run: the run that is scored.
        options: `config.evaluation`, and in front of it what its own line of `config.evals` gives.

    Attributes:
        place: where its metrics stand among those of the others.
        best: metrics that may choose the best checkpoint, the first that is there; larger is better.
    """

    place: ClassVar[int] = 9
    best: ClassVar[tuple[str, ...]] = ()

    def __init__(self, run: ScoredRun, options: Mapping[str, Any]):
        self.run, self.options = run, options

    @classmethod
    def metrics(cls, objectives: Mapping[str, type]) -> tuple[str, ...]:
        """Names of what `evaluate` yields during training, of a model with these objectives by label."""
        return ()

    def prepare(self, predictor: Predictor) -> None:
        """Before the final scores of any split."""

    def evaluate(self, predictor: Predictor, split: str, *, final: bool) -> Iterator[tuple[str, float]]:
        """(name, value) of each of its metrics; nothing if the model offers nothing that it scores.

        Args:
            final: the end of a run, or an evaluation of its own; False: during training, where time is short.
        """
        return iter(())

    def figures(self, predictor: Predictor, split: str) -> Figures:
        """What shows the model at work, drawn once at the end."""
        return Figures({}, {})

    def files(self, split: str) -> Mapping[str, str]:
        """Texts for other programs, by the name of their file, written beside result.json once `evaluate` has given the
        final scores of a split."""
        return {}

    def protocol(self, split: str) -> dict[str, Any]:
        """What its numbers must be quoted with."""
        return {}
