"""Retrieval ranks by counting, one query at a time: a tie counts against the model."""

import numpy as np


def rank(scores: np.ndarray, own: np.ndarray) -> int:
    """How many of the wrong candidates score at least as high as the best right one; `own` marks the right ones."""
    best = max(score for score, right in zip(scores, own, strict=True) if right)
    return sum(1 for score, right in zip(scores, own, strict=True) if not right and score >= best)


def ranks(scores_IT: np.ndarray, owner: np.ndarray) -> tuple[list[int], list[int]]:
    """Ranks of all pictures and of all captions; `owner[t]` is the picture of caption t."""
    images = [rank(scores_IT[i], owner == i) for i in range(scores_IT.shape[0])]
    texts = [rank(scores_IT[:, t], np.arange(scores_IT.shape[0]) == owner[t]) for t in range(scores_IT.shape[1])]
    return images, texts


def recall(ranks: list[int], k: int) -> float:
    """Percent of queries with a right answer among the first k."""
    return 100.0 * sum(1 for rank in ranks if rank < k) / len(ranks)


def score(formula: str, log_odds: float, cosine: float, temperature: float) -> float:
    """The second stage's score of one pair."""
    if formula == "itm":
        return log_odds
    if formula == "itm+itc":  # a density ratio over the contrastive model, times that model
        return float(np.log(np.exp(log_odds) * np.exp(cosine / temperature)))
    return log_odds + cosine


def area_under_roc(positive: np.ndarray, negative: np.ndarray) -> float:
    """By its definition: the share of all pairs of one of each that are in order, a tie counting half."""
    won = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative]
    return sum(won) / len(won)


def best_k(scores: np.ndarray, k: int) -> list[int]:
    """The k highest scores; of equal ones the first."""
    return sorted(range(len(scores)), key=lambda n: (-scores[n], n))[:k]


def reranked_rank(first: np.ndarray, second: np.ndarray, own: np.ndarray, k: int) -> int:
    """The rank of one query whose top k candidates are put in the order of `second`."""
    candidates = best_k(first, k)
    if not any(own[n] for n in candidates):
        return rank(first, own)
    return rank(second[candidates], own[candidates])


def reranked_ranks(
    first_IT: np.ndarray, second_IT: np.ndarray, owner: np.ndarray, k: int
) -> tuple[list[int], list[int]]:
    """As `ranks`, after re-ranking; each direction has candidates of its own."""
    pictures, captions = range(first_IT.shape[0]), range(first_IT.shape[1])
    images = [reranked_rank(first_IT[i], second_IT[i], owner == i, k) for i in pictures]
    own = np.arange(first_IT.shape[0])
    texts = [reranked_rank(first_IT[:, t], second_IT[:, t], own == owner[t], k) for t in captions]
    return images, texts
