"""Ranks and recalls of cross-modal retrieval, several captions a picture.

Ties count against the model, and so does a score that is no number: every comparison is written as "not below".
"""

import numpy as np

RECALLS = (1, 5, 10)


def image_to_text_ranks(score_IT: np.ndarray, image_of_caption: np.ndarray) -> np.ndarray:
    """(I,) rank of each picture's best own caption: how many captions of other pictures score at least as high."""
    own_IT = image_of_caption[None, :] == np.arange(score_IT.shape[0])[:, None]
    best_I = np.max(np.where(own_IT, score_IT, -np.inf), axis=1)
    return np.sum(~own_IT & ~(score_IT < best_I[:, None]), axis=1)


def text_to_image_ranks(score_IT: np.ndarray, image_of_caption: np.ndarray) -> np.ndarray:
    """(T,) rank of each caption's picture: how many other pictures score at least as high."""
    own_T = score_IT[image_of_caption, np.arange(len(image_of_caption))]
    return np.sum(~(score_IT < own_T[None, :]), axis=0) - 1


def reranked(first_rank: np.ndarray, second_rank: np.ndarray, own_in_top: np.ndarray) -> np.ndarray:
    """Ranks after re-ordering the top candidates: those outside keep the rank of the first stage."""
    return np.where(own_in_top, second_rank, first_rank)


def recalls(image_ranks: np.ndarray, text_ranks: np.ndarray, prefix: str = "") -> dict[str, float]:
    """R@1, 5, 10 in percent for both directions (i2t: a picture finds its captions) and their mean."""
    values = {}
    for name, ranks in (("i2t", image_ranks), ("t2i", text_ranks)):
        values |= {f"{prefix}{name}_r{k}": 100.0 * float(np.mean(ranks < k)) for k in RECALLS}
    return {**values, f"{prefix}mean_recall": float(np.mean(list(values.values())))}


def top_k(score: np.ndarray, k: int) -> np.ndarray:
    """(rows, columns) bool: the k highest of each row; of equal scores the first."""
    order = np.argsort(-score, axis=1, kind="stable")[:, :k]
    chosen = np.zeros(score.shape, bool)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen
