"""Losses over prototypes and masks by text, vector by vector in float64, from the equations of DINO (arXiv 2104.14294)
and iBOT (arXiv 2111.07832)."""

import math

import numpy as np

from tests.reference.numpy_losses import softmax


def gelu(x: float) -> float:
    return 0.5 * x * (1.0 + math.erf(x / math.sqrt(2.0)))


def cosines(x: np.ndarray, layers: list[tuple[np.ndarray, np.ndarray]], prototypes: np.ndarray) -> np.ndarray:
    """One vector through dense layers with GELU between them, and its cosine with each column of `prototypes`."""
    x = np.asarray(x, np.float64)
    for number, (kernel, bias) in enumerate(layers):
        x = x @ np.asarray(kernel, np.float64) + bias
        if number < len(layers) - 1:
            x = np.array([gelu(value) for value in x])
    length = math.sqrt(float(x @ x))
    columns = np.asarray(prototypes, np.float64).T
    return np.array([float(x @ column) / (length * math.sqrt(float(column @ column))) for column in columns])


def teacher_shares(cosine: np.ndarray, centre: np.ndarray, temperature: float) -> np.ndarray:
    """q' of one vector."""
    return softmax((cosine - np.asarray(centre, np.float64)) / temperature)


def cross_entropy(target: np.ndarray, cosine: np.ndarray, temperature: float) -> float:
    """H(q', q) of one pair of vectors."""
    share = softmax(cosine / temperature)
    return -sum(float(t) * math.log(q) for t, q in zip(target, share, strict=True))


def entropy(share: np.ndarray) -> float:
    return -sum(float(p) * math.log(p) for p in share if p > 0)


def temperature(first: float, last: float, start: float, stop: float, progress: float) -> float:
    """A line from `first` at the share `start` of the training to `last` at `stop`."""
    if stop <= start:
        return last
    return first + (last - first) * min(max((progress - start) / (stop - start), 0.0), 1.0)


def centres(means: list[np.ndarray], decay: float) -> np.ndarray:
    """c behind batches of these means; behind the first few the plain mean of all."""
    centre = np.zeros_like(means[0], np.float64)
    for number, mean in enumerate(means):
        kept = min(decay, number / (number + 1))
        centre = kept * centre + (1 - kept) * mean
    return centre


def chosen(score: np.ndarray, count: int) -> list[int]:
    """The `count` positions of the highest scores."""
    return sorted(sorted(range(len(score)), key=lambda n: -score[n])[:count])
