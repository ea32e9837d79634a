"""What an evaluation reads and how it chooses; the model is a toy with random parameters."""

import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.data import run_tokenizer
from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.data.sources.opening import open_training_source
from maskvlm_jax.evaluators import encoding, retrieval
from maskvlm_jax.evaluators.evaluation import Evaluation, final_result
from maskvlm_jax.evaluators.scored_run import ScoredRun
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime import sharding
from maskvlm_jax.training import build
from maskvlm_jax.training.train_step import split_model
from tests.conftest import toy_config
from tests.reference import toy


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A toy config, its tokenizer, graph definition and random parameters."""
    config = toy_config(data__tokenizer_captions=100)
    source = open_training_source(config.data.to_dict(), config.model.image.image_size)
    folder = tmp_path_factory.mktemp("evaluate") / "tokenizer"
    captions = run_tokenizer.training_captions(source, 100)
    tokenizers.save(tokenizers.train_wordpiece(captions, config.model.text.vocab_size), folder)
    arguments = build.model_arguments(config)
    model = toy.randomised(lambda: Learner(**arguments, rngs=nnx.Rngs(0)))
    return config, tokenizers.load(folder), *split_model(model)


def evaluation_of(setting, **options) -> tuple[Evaluation, dict]:
    config, tokenizer, graphdef, params = setting
    config = config.copy_and_resolve_references()
    for name, value in options.items():
        config.evaluation[name] = value
    mesh = sharding.make_mesh(data=1, fsdp=1, model=1, devices=jax.devices()[:1])
    return Evaluation(ScoredRun(config, tokenizer), graphdef, mesh), params


def choose(evaluation: Evaluation, params) -> retrieval.Chosen:
    return evaluation.evaluators["retrieval"].choose(evaluation.predictor(params))


def test_auto_takes_the_formula_with_the_best_recall_on_the_validation_split_and_says_so(setting, monkeypatch):
    evaluation, params = evaluation_of(setting, choose_images=7)
    seen = []

    def compare(predictor, data, formulas, counts, **options):
        seen.append((data.ids[:1], len(data.images), counts))
        return {4: {"itm": 50.0, "itm+itc": 60.0, "itm+cosine": 60.0}}

    monkeypatch.setattr(retrieval, "compare", compare)
    chosen = choose(evaluation, params)
    assert seen == [(["val-000000"], 7, (4,))]
    assert (chosen.score, chosen.k) == ("itm+itc", 4)  # of equals the first
    assert chosen.chosen_on == {
        "split": "val",
        "images": 7,
        "mean_recall": {"itm": 50.0, "itm+itc": 60.0, "itm+cosine": 60.0},
    }


def test_the_number_of_candidates_is_chosen_with_the_formula_or_for_one_that_is_named(setting, monkeypatch):
    recalls = {
        16: {"itm": 50.0, "itm+itc": 60.0},
        32: {"itm": 61.0, "itm+itc": 60.5},
        64: {"itm": 61.0, "itm+itc": 6.0},
    }

    def compare(predictor, data, formulas, counts, **options):
        assert counts == retrieval.CANDIDATES
        return {k: {name: by_name[name] for name in formulas if name in by_name} for k, by_name in recalls.items()}

    monkeypatch.setattr(retrieval, "compare", compare)
    monkeypatch.setattr(retrieval, "SCORES", {"itm": None, "itm+itc": None})
    evaluation, params = evaluation_of(setting, rerank_k=-1)
    chosen = choose(evaluation, params)
    assert (chosen.score, chosen.k) == ("itm", 32)  # of equals the fewest
    assert chosen.chosen_on["mean_recall"] == recalls
    evaluation, params = evaluation_of(setting, rerank_k=-1, rerank_score="itm+itc")
    assert choose(evaluation, params)[:2] == ("itm+itc", 32)
    evaluation, params = evaluation_of(setting, rerank_k=-1, validation_split="test")
    assert choose(evaluation, params) == ("itm+itc", retrieval.DEFAULT_CANDIDATES, None)


@pytest.mark.parametrize(("hardness", "expected"), [(1.0, "itm+itc"), (0.0, "itm")])
@pytest.mark.parametrize("during", ["test", "dev"], ids=["it is scored", "it is not there"])
def test_where_no_other_split_can_choose_the_formula_is_that_of_training(
    setting, during, hardness, expected, monkeypatch, capsys
):
    monkeypatch.setattr(retrieval, "compare", None)
    evaluation, params = evaluation_of(setting, validation_split=during)
    evaluation.run.config.objectives.matching.hardness = hardness
    assert choose(evaluation, params) == (expected, 4, None)
    assert (f"re-ranked by {expected}, as the split dev cannot be read" in capsys.readouterr().out) == (during == "dev")


@pytest.mark.parametrize("score", retrieval.SCORES)
def test_a_formula_that_is_named_is_taken_without_a_look(setting, score, monkeypatch):
    monkeypatch.setattr(retrieval, "compare", None)
    evaluation, params = evaluation_of(setting, rerank_score=score)
    assert choose(evaluation, params) == (score, 4, None)


@pytest.mark.slow
def test_the_formulas_are_compared_by_what_each_gives_alone(setting):
    evaluation, params = evaluation_of(setting, rerank_k=4)
    predictor, data = evaluation.predictor(params), evaluation.run.data("val")
    found = retrieval.compare(predictor, data, tuple(retrieval.SCORES), (2, 4), batch_size=8)
    for k, score in itertools.product((2, 4), retrieval.SCORES):
        evaluation, _ = evaluation_of(setting, rerank_k=k, rerank_score=score)
        evaluation.prepare(params)
        assert evaluation.all(params, "val")["rerank_mean_recall"] == found[k][score]


def test_recalls_during_training_fetch_embeddings_and_no_sequence(setting):
    evaluation, params = evaluation_of(setting)
    whole = dict(evaluation.evaluators["retrieval"].evaluate(evaluation.predictor(params), "val", final=True))
    predictor = evaluation.predictor(params)

    def fetched(*arguments):
        raise AssertionError("a sequence was fetched")

    predictor.encode_image = predictor.encode_text = fetched
    options = {"batch_size": 8, "match_images": 0, "rerank_k": 0, "rerank_score": ""}
    quick = dict(retrieval.evaluate(predictor, evaluation.run.data("val"), **options))
    assert quick == {name: value for name, value in whole.items() if not name.startswith("rerank_")}


def test_embeddings_alone_are_those_beside_the_sequences(setting):
    evaluation, params = evaluation_of(setting)
    predictor, data = evaluation.predictor(params), evaluation.run.data("val")
    for alone, (_, beside) in (
        (encoding.embed_images(predictor, data, 8), encoding.encode_images(predictor, data, 8)),
        (encoding.embed_texts(predictor, data, 8), encoding.encode_texts(predictor, data, 8)),
    ):
        np.testing.assert_allclose(alone, beside, rtol=1e-5, atol=1e-6)


def probes_of(evaluation: Evaluation, params) -> dict[str, float]:
    return dict(evaluation.evaluators["probes"].evaluate(evaluation.predictor(params), "val", final=True))


def test_without_training_captions_the_baseline_of_words_is_left_out_with_a_line(setting, capsys):
    evaluation, params = evaluation_of(setting)
    assert "masked_text_accuracy_neighbours" in probes_of(evaluation, params)
    evaluation, params = evaluation_of(setting)
    evaluation.run.data("val")
    evaluation.run.trained_on.split = "nowhere"
    assert "masked_text_accuracy_neighbours" not in probes_of(evaluation, params)
    assert "masked_text_accuracy_neighbours is left out, no training captions: " in capsys.readouterr().out


def test_a_split_that_is_named_twice_is_scored_once(tmp_path):
    scored = []

    class Fake:
        run = SimpleNamespace(config=toy_config(evaluation__split="novel", evaluation__extra_splits=("novel", "val")))
        prepare = staticmethod(lambda params: None)
        all = staticmethod(lambda params, split: scored.append(split) or {"recall": 1.0})
        write_files = staticmethod(lambda split, folder: None)
        figures = staticmethod(lambda params, split, folder: {})
        protocol = staticmethod(lambda split: {"split": split})

    result = final_result(Fake, None, folder=tmp_path, lineage={})
    assert scored == ["novel", "val"]
    assert list(result["metrics"]) == ["recall", "val/recall"] and list(result["protocol"]["also"]) == ["val"]
