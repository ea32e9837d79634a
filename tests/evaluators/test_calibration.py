"""Matching's probabilities against what there is: error, loss, intervals, and which pairs are drawn."""

import jax
import numpy as np
import pytest
from flax import nnx

from configs import evaluate, pretrain
from maskvlm_jax.data import run_tokenizer
from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.data.sources.opening import open_training_source
from maskvlm_jax.evaluators import calibration, encoding
from maskvlm_jax.evaluators.calibration import Pairs
from maskvlm_jax.evaluators.evaluation import Evaluation
from maskvlm_jax.evaluators.scored_run import ScoredRun
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.objectives.matching import Objective as Matching
from maskvlm_jax.runtime import sharding
from maskvlm_jax.settings import plain_values, rules
from maskvlm_jax.training import build
from maskvlm_jax.training.train_step import split_model
from tests.conftest import toy_config
from tests.reference import numpy_calibration, toy

NAMES = ["matching_calibration_error", "matching_log_loss"]
NAMES += [f"{name}_hard" for name in NAMES]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """Of a toy model with random parameters, and those."""
    config = toy_config(data__tokenizer_captions=100, batch_size=4)
    config = plain_values.merge_evaluation(config, evaluate.get_config("evals=calibration"))
    source = open_training_source(config.data.to_dict(), config.model.image.image_size)
    folder = tmp_path_factory.mktemp("calibration") / "tokenizer"
    captions = run_tokenizer.training_captions(source, 100)
    tokenizers.save(tokenizers.train_wordpiece(captions, config.model.text.vocab_size), folder)
    arguments = build.model_arguments(config)
    graphdef, params = split_model(toy.randomised(lambda: Learner(**arguments, rngs=nnx.Rngs(0))))
    mesh = sharding.make_mesh(data=1, fsdp=1, model=1, devices=jax.devices()[:1])
    return Evaluation(ScoredRun(config, tokenizers.load(folder)), graphdef, mesh), params


def some_pairs(count: int = 500, seed: int = 0) -> Pairs:
    rng = np.random.default_rng(seed)
    return Pairs(rng.normal(1, 2, count).astype(np.float32), rng.normal(-1, 2, count).astype(np.float32))


@pytest.mark.parametrize("count", [1, 7, 500])
def test_error_and_loss_are_those_of_each_pair_alone(count):
    pairs = some_pairs(count)
    oracle = [values.tolist() for values in pairs]
    error = calibration.calibration_error(calibration.reliability(pairs))
    assert error == pytest.approx(numpy_calibration.calibration_error(*oracle, calibration.BINS), rel=1e-5)
    assert calibration.log_loss(pairs) == pytest.approx(numpy_calibration.log_loss(*oracle), rel=1e-5)


def test_probabilities_that_are_right_have_no_error_and_exaggerated_ones_have():
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 2, 40_000)
    belongs = rng.random(len(odds)) < calibration.probability(odds)
    right = Pairs(odds[belongs], odds[~belongs])
    exaggerated = Pairs(*(3 * part for part in right))
    assert calibration.calibration_error(calibration.reliability(right)) < 1.5
    assert calibration.calibration_error(calibration.reliability(exaggerated)) > 10
    assert calibration.log_loss(right) < calibration.log_loss(exaggerated)


def test_a_head_that_is_certain_and_right_has_neither_error_nor_loss():
    sure = Pairs(np.full(3, 200, np.float32), np.full(3, -200, np.float32))
    found = calibration.reliability(sure)
    assert calibration.calibration_error(found) == 0 and calibration.log_loss(sure) < 1e-12
    assert found.count.tolist() == [3, *[0] * (calibration.BINS - 2), 3]


def test_an_interval_ends_where_a_share_would_be_too_far_from_it():
    for share, count in ((0.0, 5), (0.3, 10), (1.0, 28), (0.5, 1000)):
        low, high = calibration.wilson(np.array(share), np.array(count))
        inside = [numpy_calibration.inside_wilson(share, count, p) for p in np.linspace(0, 1, 10_001)]
        first, last = np.flatnonzero(inside)[[0, -1]] / 10_000
        assert (low, high) == (pytest.approx(first, abs=1e-4), pytest.approx(last, abs=1e-4))


def test_hard_pairs_follow_the_similarity_and_only_what_is_allowed_is_drawn():
    similarity = np.array([1.0, 0.0, 2.0, 9.0])
    allowed = np.tile([True, True, True, False], (30_000, 1))
    drawn = calibration.draw_hard(np.tile(similarity, (30_000, 1)), allowed, np.random.default_rng(0))
    expected = np.exp(similarity[:3]) / np.exp(similarity[:3]).sum()
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / len(drawn), [*expected, 0], atol=0.01)
    assert calibration.draw_hard(np.zeros((1, 2)), np.zeros((1, 2), bool), np.random.default_rng(0)) == [-1]


@pytest.mark.parametrize("block", [256, 4])
def test_each_picture_is_paired_with_its_own_caption_and_with_two_others(evaluation, monkeypatch, block):
    scored, params = evaluation
    predictor, data = scored.predictor(params), scored.run.data("val")
    monkeypatch.setattr(encoding, "IMAGE_BLOCK", block)
    found = calibration.score_pairs(predictor, data, batch_size=8, limit=10, pool=4, seed=0)
    image_ISD, _ = encoding.encode_images(predictor, data, 8)
    text_TLD, _ = encoding.encode_texts(predictor, data, 8)
    every = np.ones((len(image_ISD), len(text_TLD)), bool)
    score_IT = encoding.match_scores(predictor, image_ISD, text_TLD, data.text["token_valid"], every)
    rows, close = np.arange(10), {"rtol": 1e-4, "atol": 1e-5}
    own = data.first_captions
    np.testing.assert_allclose(found["random"].matched, score_IT[rows, own[rows]], **close)
    np.testing.assert_allclose(found["random"].unmatched, score_IT[rows, own[data.other_pictures()[rows]]], **close)
    for row, odds in zip(rows, found["hard"].unmatched, strict=True):
        pool = [other for other in range(row // 4 * 4, min(row // 4 * 4 + 4, 10)) if other != row]
        assert min(abs(score_IT[row, own[pool]] - odds)) < 1e-4


def test_it_is_scored_and_drawn_where_it_is_asked_for_and_changes_no_other(evaluation, monkeypatch):
    scored, params = evaluation
    calibrated = scored.evaluators["calibration"]
    assert list(calibrated.metrics(scored.run.objectives)) == NAMES
    assert not calibrated.figures(scored.predictor(params), "test").sheets  # nothing was scored
    values = scored.all(params, "test")
    assert list(values)[-4:] == NAMES
    sheet = calibrated.figures(scored.predictor(params), "test").sheets["calibration"]
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3 and sheet.std() > 10
    assert scored.protocol("test")["calibration"] == {"pairs": {"random": 24, "hard": 24}, "bins": 10, "hard_among": 4}
    monkeypatch.delitem(scored.evaluators, "calibration")
    assert scored.all(params, "test") == {name: value for name, value in values.items() if name not in NAMES}


def test_what_a_model_lacks_is_not_scored():
    assert calibration.Evaluator.metrics(rules.active_objectives(pretrain.get_config("recipe=clip"))) == ()
    assert calibration.Evaluator.metrics({"matching": Matching}) == tuple(NAMES[:2])
