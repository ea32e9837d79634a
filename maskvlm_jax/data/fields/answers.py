"""How right each answer of a list is, by the answers that people gave to the example's question."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from maskvlm_jax.data import answers
from maskvlm_jax.data.fields import base
from maskvlm_jax.data.fields.base import Array, Drawn, Sizes
from maskvlm_jax.data.sources.base import facts_of
from maskvlm_jax.data.sources.training_set import TrainingSet
from maskvlm_jax.runtime.errors import UserError


class Field(base.Field):
    """The array `label`, (A,) float32 of 0 to 1: the score of each answer of the list, see `data.answers`.

    The example has "answers", a text of each person who was asked; none where they are not known, and "answer", the
    one of most people, if the source tells it. A training run writes its list into its config.

    Args:
        answers: the list, in the order of their numbers; () = made of the answers trained on.
        file: one answer a line, or a JSON list of them, in the place of any other list.
        least: a list that is made holds what is the answer to so many questions.
        count: how many there are; 0 = all. Of a list that is made, the most frequent ones.
    Raises:
        UserError: another count than that of the list.
    """

    def __init__(
        self,
        label: str,
        sizes: Sizes,
        tokenizer: Any = None,
        *,
        answers: Sequence[str] = (),
        file: str = "",
        least: int = 9,
        count: int = 0,
    ):
        if answers and count not in (0, len(answers)):
            raise UserError(f"data.fields.{label} has {len(answers)} answers, and count is {count}; make them agree")
        self._label, self._count = label, len(answers) or count
        self._numbers = numbers_of(answers)

    @classmethod
    def resolved(cls, options: Mapping[str, Any], source: TrainingSet) -> dict[str, Any]:
        """The options with the list."""
        listed, count = tuple(options.get("answers", ())), options.get("count", 0)
        if options.get("file"):
            listed, count = answers.read_list(options["file"]), 0
        if not listed:
            least = options.get("least", 9)
            listed = answers.frequent(_answers_of(source), least=least, most=count)
            if not listed:
                raise UserError(
                    f"no answer is that of {least} questions that are trained on; lower least of the field, or give a "
                    "list as its file"
                )
        # Where the list was read is of no meaning elsewhere.
        return {**options, "answers": listed, "file": "", "count": count or len(listed)}

    def arrays(self) -> dict[str, Array]:
        return {self._label: Array((self._count,), np.float32)}

    def make(self, drawn: Drawn, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Raises UserError: the example's answers are no texts."""
        score_A = np.zeros(self._count, np.float32)
        for answer, score in answers.scores(given_to(drawn.example, self._label)).items():
            if answer in self._numbers:
                score_A[self._numbers[answer]] = score
        return {self._label: score_A}


def numbers_of(listed: Sequence[str]) -> dict[str, int]:
    """Normalised answer -> its number, the first of those that are alike."""
    numbers: dict[str, int] = {}
    for number, answer in enumerate(listed):
        numbers.setdefault(answers.normalised(answer), number)
    return numbers


def given_to(example: Mapping[str, Any], label: str) -> list[str]:
    """The answers that people gave to an example's question.

    Raises:
        UserError: they are no texts.
    """
    given = example.get("answers")
    if not isinstance(given, list | tuple) or not all(isinstance(answer, str) for answer in given):
        raise UserError(f"{example['id']} has the answers {given!r}, data.fields.{label} reads a list of texts")
    return list(given)


def _answers_of(source: TrainingSet) -> Iterator[str]:
    """The answer of most people to each question that is trained on."""
    for examples in source.ranges:
        for index in examples:
            example = facts_of(source, index)
            given = given_to(example, "answers")
            if given:
                yield example.get("answer") or next(iter(answers.shares(given)), "")
