"""Scores of answers to questions, of a model with an objective that `AnswersQuestions`; see `data.answers`.

Each question gets the best answer of the run's list. `answers_SPLIT.json` has them in the format of VQA's server, of
splits whose answers are not known too.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskvlm_jax.data import answers
from maskvlm_jax.data.evaluation_set import EvaluationSet
from maskvlm_jax.data.tokenizer import Tokenizer
from maskvlm_jax.evaluators import base, encoding
from maskvlm_jax.evaluators.predictor import Predictor
from maskvlm_jax.objectives.base import AnswersQuestions, AnswerTexts, objective_of
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime.sheets import INK, PALE, PAPER

TYPES = ("yes/no", "number", "other")
TILE, GAP = 128, 10
RIGHT, WRONG = (0, 120, 50), (190, 30, 30)


def scores_of(learner: Learner, batch: Mapping[str, jax.Array], tokens_AL: jax.Array, valid_AL: jax.Array) -> jax.Array:
    """score_BA of the answers of a list, see `objectives.base.AnswersQuestions`."""
    return learner.offering(AnswersQuestions).answer_scores(learner.context(batch), AnswerTexts(tokens_AL, valid_AL))


def encoded(listed: Sequence[str], tokenizer: Tokenizer, length: int) -> tuple[np.ndarray, np.ndarray]:
    """tokens_AL and valid_AL of a list, no longer than its longest answer, and at most `length`."""
    tokens_AL, valid_AL = tokenizer.encode_all(listed, length)
    longest = int(valid_AL.sum(axis=1).max())
    return tokens_AL[:, :longest], valid_AL[:, :longest]


def _best(
    learner: Learner, batch: Mapping[str, jax.Array], tokens_AL: jax.Array, valid_AL: jax.Array
) -> tuple[jax.Array]:
    """best_B, the number of the best answer; -1 where scores are no numbers."""
    score_BA = scores_of(learner, batch, tokens_AL, valid_AL)
    return (jnp.where(jnp.any(jnp.isnan(score_BA), axis=1), -1, jnp.argmax(score_BA, axis=1)),)


class Answered(NamedTuple):
    """A question of a split, the answer that is told, and its score, None where the right ones are not known."""

    facts: Mapping[str, Any]
    told: str
    score: float | None


class Evaluator(base.Evaluator):
    """vqa_score and that of each type of answer, vqa_score_yes_no, vqa_score_number and vqa_score_other, in percent.

    Options of its line: `field`, the label of the field that has the list of answers.
    """

    best = ("vqa_score",)

    def __init__(self, run, options: Mapping[str, Any]):
        super().__init__(run, options)
        self._answered: dict[str, list[Answered]] = {}

    @classmethod
    def metrics(cls, objectives: Mapping[str, type]) -> tuple[str, ...]:
        if objective_of(objectives, AnswersQuestions) is None:
            return ()
        return ("vqa_score", *map(_metric, TYPES))

    def evaluate(self, predictor: Predictor, split: str, *, final: bool) -> Iterator[tuple[str, float]]:
        if not predictor.offers(AnswersQuestions):
            return
        told, known = self.told(predictor, split), self.run.data(split).known
        answered = [
            Answered(one, answer, answers.score(answer, one["answers"]) if one["answers"] else None)
            for one, answer in zip(known, told, strict=True)
        ]
        if final:
            self._answered[split] = answered
        scored = [one for one in answered if one.score is not None]
        if not scored:
            return
        yield "vqa_score", 100.0 * float(np.mean([one.score for one in scored]))
        for kind in sorted({one.facts.get("answer_type", "") for one in scored} - {""}, key=_place):
            of_kind = [one.score for one in scored if one.facts.get("answer_type") == kind]
            yield _metric(kind), 100.0 * float(np.mean(of_kind))

    def told(self, predictor: Predictor, split: str) -> list[str]:
        """The best answer of the list to each question of a split; "" where the model gives no numbers."""
        listed, size = self._list(), self.options["batch_size"]
        texts = encoded(listed, self.run.tokenizer, self.run.config.model.text.max_length)
        (best_I,) = encoding.of_examples(predictor, self.run.data(split), size, _best, *texts)
        return [listed[number] if number >= 0 else "" for number in best_I]

    def files(self, split: str) -> Mapping[str, str]:
        """The answers, [{"question_id", "answer"}], in the order of the questions."""
        if split not in self._answered:
            return {}
        rows = [
            {"question_id": one.facts.get("question_id", one.facts["id"]), "answer": one.told}
            for one in self._answered[split]
        ]
        return {"answers.json": json.dumps(rows, ensure_ascii=False) + "\n"}

    def figures(self, predictor: Predictor, split: str) -> base.Figures:
        """The first questions with the answers that are told and given; 0 `figures` = none."""
        count, answered = self.options["figures"], self._answered.get(split, [])
        if not count or not answered:
            return base.Figures({}, {})
        sheet = answer_sheet(self.run.data(split), answered[:count])
        return base.Figures({"answers": sheet}, {"answers": answer_page(answered, count)})

    def protocol(self, split: str) -> dict[str, Any]:
        return {"answers": len(self._list())}

    def _list(self) -> tuple[str, ...]:
        return tuple(self.run.config.data.fields[self.options["field"]].answers)


def _metric(kind: str) -> str:
    """The name of the score of a type of answer."""
    return "vqa_score_" + re.sub(r"\W+", "_", kind)


def _place(kind: str) -> tuple[int, str]:
    return (TYPES.index(kind) if kind in TYPES else len(TYPES), kind)


def answer_page(answered: list[Answered], count: int) -> str:
    """Markdown: scores by the kind of question, the most frequent first, and the first `count` questions."""
    kinds = Counter(one.facts.get("question_type", "") for one in answered if one.score is not None)
    lines = ["| kind of question | questions | score |", "|---|---|---|"]
    for kind, number in kinds.most_common():
        scores = [one.score for one in answered if one.score is not None and one.facts.get("question_type", "") == kind]
        lines.append(f"| {_cell(kind)} | {number} | {100 * np.mean(scores):.1f} |")
    lines += ["", "| id | question | told | given | score |", "|---|---|---|---|---|"]
    for one in answered[:count]:
        score = "" if one.score is None else f"{one.score:.1f}"
        cells = (one.facts["id"], one.facts["captions"][0], one.told, _given(one.facts["answers"]), score)
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(lines) + "\n"


def answer_sheet(data: EvaluationSet, answered: list[Answered]) -> np.ndarray:
    """A sheet of the first questions: the picture, the question, the answer that is told and those given."""
    sheet = Image.new("RGB", (TILE + 3 * GAP + 620, GAP + len(answered) * (TILE + GAP)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for row, one in enumerate(answered):
        top, left = GAP + row * (TILE + GAP), TILE + 2 * GAP
        tile = Image.fromarray(data.images[row]).resize((TILE, TILE), Image.Resampling.NEAREST)
        sheet.paste(tile, (GAP, top))
        ink = INK if one.score is None else RIGHT if one.score > 0 else WRONG
        draw.text((left, top + 8), one.facts["captions"][0][:70], INK, font)
        draw.text((left, top + 42), one.told, ink, font)
        draw.text((left, top + 76), _given(one.facts["answers"])[:70], PALE, font)
    return np.asarray(sheet)


def _given(given: list[str]) -> str:
    """The answers of people, and how many gave each that some others did too."""
    counts = Counter(given).most_common()
    return ", ".join(answer if count == 1 else f"{answer} ({count})" for answer, count in counts)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
