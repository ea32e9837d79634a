"""Ranks and recalls with several captions a picture, ties against the model, before and after re-ranking."""

import numpy as np
import pytest

from maskvlm_jax.evaluators import matching, ranking, retrieval
from tests.reference import numpy_retrieval

OWNER = np.array([0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 4])  # picture of each caption


def scores(levels: int = 0, seed: int = 0) -> np.ndarray:
    """(I, T); with few `levels` there are many ties."""
    rng = np.random.default_rng(seed)
    shape = (OWNER.max() + 1, len(OWNER))
    return (rng.integers(0, levels, shape) if levels else rng.normal(size=shape)).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [0, 2, 4])
def test_ranks_are_the_naive_ones(levels, seed):
    score_IT = scores(levels, seed)
    images, texts = numpy_retrieval.ranks(score_IT, OWNER)
    np.testing.assert_array_equal(ranking.image_to_text_ranks(score_IT, OWNER), images)
    np.testing.assert_array_equal(ranking.text_to_image_ranks(score_IT, OWNER), texts)


def test_ranks_by_hand():
    owner = np.array([0, 0, 1, 1])
    score_IT = np.array([[0.1, 0.7, 0.9, 0.7], [0.2, 0.3, 0.3, 0.8]])
    # Picture 0: its best caption 0.7; 0.9 is above and 0.7 ties. Picture 1: 0.8 is the best.
    np.testing.assert_array_equal(ranking.image_to_text_ranks(score_IT, owner), [2, 0])
    # Captions: 0.1 < 0.2; 0.7 > 0.3; own 0.3 < 0.9; own 0.8 > 0.7.
    np.testing.assert_array_equal(ranking.text_to_image_ranks(score_IT, owner), [1, 0, 1, 0])


def test_equal_scores_everywhere_are_the_worst_rank():
    same = np.ones((5, len(OWNER)))
    counts = np.bincount(OWNER)
    np.testing.assert_array_equal(ranking.image_to_text_ranks(same, OWNER), len(OWNER) - counts)
    np.testing.assert_array_equal(ranking.text_to_image_ranks(same, OWNER), 4)


def test_recalls_are_percent_of_queries_and_their_mean():
    images, texts = np.array([0, 4, 9, 10]), np.array([0, 0, 5, 1])
    values = ranking.recalls(images, texts, prefix="x_")
    for name, ranks in (("i2t", images), ("t2i", texts)):
        for k in (1, 5, 10):
            assert values[f"x_{name}_r{k}"] == numpy_retrieval.recall(ranks.tolist(), k)
    by_hand = {"i2t_r1": 25, "i2t_r5": 50, "i2t_r10": 75, "t2i_r1": 50, "t2i_r5": 75, "t2i_r10": 100}
    assert values == {f"x_{name}": float(value) for name, value in by_hand.items()} | {"x_mean_recall": 62.5}


@pytest.mark.parametrize("k", [1, 3, 11, 20])
@pytest.mark.parametrize("levels", [0, 3])
def test_top_k_is_the_k_highest_of_equal_ones_the_first(levels, k):
    score_IT = scores(levels)
    chosen = ranking.top_k(score_IT, k)
    for row, marked in zip(score_IT, chosen, strict=True):
        assert set(np.flatnonzero(marked)) == set(numpy_retrieval.best_k(row, k))


def test_those_outside_the_top_keep_the_rank_of_the_first_stage():
    ranks = ranking.reranked(np.array([7, 8, 9]), np.array([0, 1, 2]), np.array([True, False, True]))
    np.testing.assert_array_equal(ranks, [0, 8, 2])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [0, 3])
@pytest.mark.parametrize("k", [1, 2, 4, 11])
def test_recalls_after_re_ranking_are_the_naive_ones(k, levels, seed):
    first, second = scores(levels, seed), scores(levels, seed + 100)
    top_texts, top_images = ranking.top_k(first, k), ranking.top_k(first.T, k).T
    known = np.where(top_texts | top_images, second, -np.inf)  # as the matching head leaves it
    values = retrieval.rerank_recalls(
        known,
        top_texts,
        top_images,
        OWNER,
        ranking.image_to_text_ranks(first, OWNER),
        ranking.text_to_image_ranks(first, OWNER),
    )
    images, texts = numpy_retrieval.reranked_ranks(first, second, OWNER, k)
    for name, ranks in (("i2t", images), ("t2i", texts)):
        for count in (1, 5, 10):
            assert values[f"rerank_{name}_r{count}"] == pytest.approx(numpy_retrieval.recall(ranks, count))


def test_re_ranking_by_hand():
    owner = np.array([0, 1, 2])
    first = np.array([[0.5, 0.9, 0.1], [0.2, 0.8, 0.7], [0.9, 0.8, 0.1]])
    second = np.array([[5.0, 1.0, 9.0], [0.0, 1.0, 2.0], [0.0, 0.0, 9.0]])
    top_texts, top_images = ranking.top_k(first, 2), ranking.top_k(first.T, 2).T
    values = retrieval.rerank_recalls(
        second,
        top_texts,
        top_images,
        owner,
        ranking.image_to_text_ranks(first, owner),
        ranking.text_to_image_ranks(first, owner),
    )
    # Picture 0: of captions 1 and 0 its own wins (9.0 is no candidate). Picture 1: caption 2 wins. Picture 2: its own
    # is no candidate and stays third.
    assert values["rerank_i2t_r1"] == pytest.approx(100 / 3)
    # Caption 0: picture 0 beats 2. Caption 1: pictures 0 and 1 tie at 1.0. Caption 2: of pictures 1 and 0, its own is
    # no candidate.
    assert values["rerank_t2i_r1"] == pytest.approx(100 / 3)


def test_re_ranking_all_candidates_is_ranking_by_the_second_score():
    first, second = scores(), scores(seed=1)
    everything = np.ones_like(first, bool)
    before = ranking.image_to_text_ranks(first, OWNER), ranking.text_to_image_ranks(first, OWNER)
    after = ranking.image_to_text_ranks(second, OWNER), ranking.text_to_image_ranks(second, OWNER)
    values = retrieval.rerank_recalls(second, everything, everything, OWNER, *before)
    assert values == ranking.recalls(*after, prefix="rerank_")


def test_scores_that_are_no_numbers_are_the_worst_rank():
    owner, nan = np.arange(3), np.full((3, 3), np.nan)
    np.testing.assert_array_equal(ranking.image_to_text_ranks(nan, owner), 2)
    np.testing.assert_array_equal(ranking.text_to_image_ranks(nan, owner), 2)


@pytest.mark.parametrize("formula", retrieval.SCORES)
def test_every_score_formula_is_the_one_that_is_written_down(formula):
    rng = np.random.default_rng(0)
    log_odds, cosine = rng.normal(size=(4, 5)), rng.uniform(-1, 1, (4, 5))
    found = retrieval.SCORES[formula](log_odds, cosine, 0.05)
    expected = [numpy_retrieval.score(formula, m, s, 0.05) for m, s in zip(log_odds.flat, cosine.flat, strict=True)]
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-9)


def test_negatives_by_similarity_leave_matching_the_residual_and_the_sum_ranks_as_the_truth_does():
    # Noise-contrastive estimation with the contrastive model as the noise: the best log-odds of a pair are
    # log p - log q up to a constant of its row, so that they order candidates as p does with the similarity added.
    rng = np.random.default_rng(0)
    truth, model = (np.log(rng.dirichlet(np.ones(8), 6)) for _ in range(2))
    cosine, temperature = model * 0.05, 0.05
    best_log_odds = truth - cosine / temperature - np.log(2.0)  # one negative of each kind a pair
    order = lambda score: np.argsort(-score, axis=1)  # noqa: E731
    ranked = retrieval.SCORES["itm+itc"](best_log_odds, cosine, temperature)
    np.testing.assert_array_equal(order(ranked), order(truth))
    assert np.any(order(retrieval.SCORES["itm"](best_log_odds, cosine, temperature)) != order(truth))


@pytest.mark.parametrize("levels", [0, 2, 5])
def test_the_area_under_the_curve_is_the_share_of_pairs_in_order(levels):
    rng = np.random.default_rng(levels)
    draw = lambda count: rng.integers(0, levels, count) if levels else rng.normal(size=count)  # noqa: E731
    positive, negative = draw(30), draw(41)
    expected = numpy_retrieval.area_under_roc(positive, negative)
    np.testing.assert_allclose(matching.area_under_roc(positive, negative), expected, rtol=1e-12)
    assert matching.area_under_roc(np.zeros(3), np.zeros(4)) == 0.5
