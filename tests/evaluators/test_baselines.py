"""The baselines of the masked heads are what they say, counted one by one."""

import numpy as np
import pytest

from maskvlm_jax.evaluators import baselines

PAD, START, END = 0, 1, 2
CAPTIONS = [[1, 5, 6, 7, 2, 0], [1, 5, 6, 8, 2, 0], [1, 5, 6, 7, 2, 0], [1, 9, 7, 2, 0, 0], [1, 4, 9, 6, 8, 2]]
VOCAB = 11


@pytest.fixture(scope="module")
def words():
    tokens = np.array(CAPTIONS)
    return baselines.NeighbourWords(tokens, tokens != PAD, VOCAB)


def naive(left: int, right: int) -> np.ndarray:
    """p(w | left, right) by the definition, from plain counts; a negative neighbour is not known."""
    triples = [
        (c[i - 1], c[i], c[i + 1]) for c in ([t for t in c if t != PAD] for c in CAPTIONS) for i in range(1, len(c) - 1)
    ]
    prior = np.array([(sum(w == v for _, v, _ in triples) + 1e-3) for w in range(VOCAB)])
    prior /= prior.sum()

    def smoothed(counts, coarser):
        result = np.array([sum(v == w for v in counts) for w in range(VOCAB)]) + coarser
        return result / result.sum()

    of_left = smoothed([w for a, w, _ in triples if a == left], prior)
    of_right = smoothed([w for _, w, b in triples if b == right], prior)
    if left < 0 or right < 0:
        return of_left if left >= 0 else of_right if right >= 0 else prior
    product = of_left * of_right / prior
    return smoothed([w for a, w, b in triples if (a, b) == (left, right)], product / product.sum())


@pytest.mark.parametrize("left", [-1, START, 5, 6, 9, 10])
@pytest.mark.parametrize("right", [-1, END, 6, 7, 8, 10])
def test_a_word_between_two_others_is_the_likeliest_by_counts(words, left, right):
    expected = naive(left, right)
    np.testing.assert_allclose(expected[words.predict(left, right)], expected.max(), rtol=1e-6)


def test_accuracy_counts_masked_tokens_and_a_masked_neighbour_tells_nothing(words):
    text = {"tokens": np.array([[1, 5, 6, 7, 2, 0]] * 2), "text_masked": np.zeros((2, 6), bool)}
    text["text_masked"][0, 2] = True  # between 5 and 7: 6
    text["text_masked"][1, 1:3] = True
    first, second = words.predict(START, -1), words.predict(-1, 7)
    right = (words.predict(5, 7) == 6) + (first == 5) + (second == 6)
    assert words.predict(5, 7) == 6
    np.testing.assert_allclose(words.accuracy(text, [0, 1]), 100 * right / 3)


def test_a_hidden_patch_is_the_weighted_mean_of_the_visible_ones():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
    masked = np.zeros((2, 9), bool)
    masked[0, [0, 4, 7]] = masked[1, [1, 2, 8]] = True
    colours, targets = baselines.blended_patches(images, masked)
    for picture in range(2):
        for place, number in enumerate(np.flatnonzero(masked[picture])):
            row, column = divmod(number, 3)
            cut = lambda r, c: images[picture, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4]  # noqa: E731, B023
            total, weights = np.zeros(3), 0.0
            for other in np.flatnonzero(~masked[picture]):
                r, c = divmod(other, 3)
                weight = 1 / ((r - row) ** 2 + (c - column) ** 2)
                total, weights = total + weight * cut(r, c).reshape(-1, 3).mean(axis=0), weights + weight
            np.testing.assert_allclose(colours[picture, place], total / weights, rtol=1e-9)
            np.testing.assert_array_equal(targets[picture, place], cut(row, column).reshape(-1, 3))


def test_where_nothing_is_visible_the_blend_is_the_mean_colour():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    colours, _ = baselines.blended_patches(images, np.ones((3, 4), bool))
    np.testing.assert_allclose(colours, np.broadcast_to(images.mean(axis=(0, 1, 2)), colours.shape))
