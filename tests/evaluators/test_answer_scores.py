"""Scores of answers are the official ones, and a file has them in the format of VQA's server."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from maskvlm_jax.evaluators import answers
from maskvlm_jax.objectives.base import AnswersQuestions
from tests.reference import vqa_score

LIST = ("yes", "no", "2", "a red cat", "café")
KINDS = ("yes/no", "number", "other")
COUNT = 23


class Predictor:
    """Gives scores that are there already."""

    def __init__(self, score_IA):
        self.score_IA, self.texts = jnp.asarray(score_IA), None

    def offers(self, role):
        return role is AnswersQuestions

    def fetch(self, function, batch, *texts):
        self.texts = texts
        objective = SimpleNamespace(answer_scores=lambda ctx, texts: self.score_IA[ctx["rows"]])
        return function(SimpleNamespace(offering=lambda role: objective, context=dict), batch, *texts)


class Questions:
    images = np.zeros((COUNT, 8, 8, 3), np.uint8)
    first_captions = np.arange(COUNT)

    def __init__(self, known):
        self.known = known

    def batch(self, pictures, texts, valid):
        return {"rows": pictures}


def encode_all(texts, length):
    valid_TL = np.stack([np.arange(length) < len(text.split()) + 2 for text in texts])
    return valid_TL.astype(np.int32), valid_TL


def known(rng, number, given):
    kind = KINDS[number % 3]
    facts = {"id": str(number), "captions": [f"what | is {number}"], "answers": given, "answer_type": kind}
    return facts | {"question_id": 100 + number, "question_type": "what is"}


def evaluator_of(facts):
    field = SimpleNamespace(answers=list(LIST))
    config = SimpleNamespace(data=SimpleNamespace(fields={"answers": field}))
    config.model = SimpleNamespace(text=SimpleNamespace(max_length=9))
    run = SimpleNamespace(config=config, tokenizer=SimpleNamespace(encode_all=encode_all))
    run.data = lambda split: Questions(facts)
    return answers.Evaluator(run, {"batch_size": 5, "field": "answers", "figures": 4})


def facts_of_some(rng):
    return [known(rng, i, list(rng.choice([*LIST, "cat", "two", "Yes."], 10))) for i in range(COUNT)]


def test_scores_are_those_of_an_oracle_over_all_questions_and_by_type():
    rng = np.random.default_rng(0)
    score_IA, facts = rng.normal(size=(COUNT, len(LIST))), facts_of_some(rng)
    score_IA[3, 2:] = -np.inf
    evaluator, predictor = evaluator_of(facts), Predictor(score_IA)
    found = dict(evaluator.evaluate(predictor, "val", final=True))
    expected = [
        vqa_score.score(LIST[int(np.argmax(row))], one["answers"]) for row, one in zip(score_IA, facts, strict=True)
    ]
    assert list(found) == ["vqa_score", "vqa_score_yes_no", "vqa_score_number", "vqa_score_other"]
    assert set(found) == set(evaluator.metrics({"answers": AnswersQuestions}))
    assert found["vqa_score"] == pytest.approx(100 * np.mean(expected))
    for name, start in (("yes_no", 0), ("number", 1), ("other", 2)):
        assert found[f"vqa_score_{name}"] == pytest.approx(100 * np.mean(expected[start::3]))
    tokens, valid = predictor.texts
    assert tokens.shape == valid.shape == (len(LIST), 5)  # as long as the longest answer


def test_the_file_has_every_question_in_the_servers_format():
    rng = np.random.default_rng(1)
    score_IA, facts = rng.normal(size=(COUNT, len(LIST))), facts_of_some(rng)
    score_IA[7] = np.nan
    evaluator = evaluator_of(facts)
    assert evaluator.files("test") == {}
    list(evaluator.evaluate(Predictor(score_IA), "test", final=False))
    assert evaluator.files("test") == {}  # not of an evaluation during training
    list(evaluator.evaluate(Predictor(score_IA), "test", final=True))
    rows = json.loads(evaluator.files("test")["answers.json"])
    told = [LIST[int(np.argmax(row))] for row in score_IA]
    told[7] = ""
    assert rows == [{"question_id": 100 + i, "answer": told[i]} for i in range(COUNT)]


def test_questions_without_answers_are_answered_and_not_scored():
    rng = np.random.default_rng(2)
    score_IA, facts = rng.normal(size=(COUNT, len(LIST))), facts_of_some(rng)
    for one in facts:
        one["answers"] = []
    evaluator = evaluator_of(facts)
    assert dict(evaluator.evaluate(Predictor(score_IA), "test", final=True)) == {}
    assert len(json.loads(evaluator.files("test")["answers.json"])) == COUNT
    assert "what \\| is 3" in evaluator.figures(None, "test").pages["answers"]
    facts[4]["answers"] = [LIST[int(np.argmax(score_IA[4]))]] * 10
    assert dict(evaluator.evaluate(Predictor(score_IA), "test", final=True)) == {
        "vqa_score": 100,
        "vqa_score_number": 100,
    }


def test_the_page_shows_the_first_questions_and_scores_by_kind():
    rng = np.random.default_rng(3)
    evaluator = evaluator_of(facts_of_some(rng))
    list(evaluator.evaluate(Predictor(rng.normal(size=(COUNT, len(LIST)))), "val", final=True))
    drawn = evaluator.figures(None, "val")
    assert f"| what is | {COUNT} |" in drawn.pages["answers"]
    assert drawn.pages["answers"].count("what \\| is") == 4
    assert drawn.sheets["answers"].shape[2] == 3
    evaluator.options["figures"] = 0
    assert not evaluator.figures(None, "val").pages


def test_a_model_that_answers_nothing_is_not_scored():
    evaluator = evaluator_of([])
    assert evaluator.metrics({}) == ()
    predictor = SimpleNamespace(offers=lambda role: False)
    assert list(evaluator.evaluate(predictor, "val", final=True)) == []
