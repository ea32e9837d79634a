"""Routed experts and their balance, token by token in float64, from the equations of EVE (arXiv 2308.11971)."""

from collections.abc import Callable

import numpy as np

from tests.reference.numpy_losses import softmax


def router(x: np.ndarray, kernel: np.ndarray, modality: np.ndarray) -> np.ndarray:
    """r = softmax(W (x + b_m)) of one token."""
    return softmax((np.asarray(x, np.float64) + modality) @ np.asarray(kernel, np.float64))


def feed_forward(x: np.ndarray, up, up_bias, down, down_bias, activation: Callable) -> np.ndarray:
    """One token through one feed-forward layer."""
    hidden = np.asarray(x, np.float64) @ np.asarray(up, np.float64) + up_bias
    return np.array([activation(h) for h in hidden]) @ np.asarray(down, np.float64) + down_bias


def mixture(x: np.ndarray, shares: np.ndarray, experts: list[tuple], top: int, activation: Callable) -> np.ndarray:
    """Σ_{e in top} r_e / Σ_{top} r · FFN_e(x) of one token; the first of equal shares counts as the larger."""
    best = sorted(range(len(shares)), key=lambda e: (-shares[e], e))[:top]
    total = sum(shares[e] for e in best)
    return sum(shares[e] / total * feed_forward(x, *experts[e], activation) for e in best)


def balance(shares: np.ndarray, real: np.ndarray) -> float:
    """E · Σ_e f_e p_e over the real tokens; shares (B, S, E)."""
    experts = shares.shape[-1]
    first, mean, count = [0.0] * experts, [0.0] * experts, 0
    for b, s in np.ndindex(*real.shape):
        if real[b, s]:
            count += 1
            first[int(np.argmax(shares[b, s]))] += 1
            for e in range(experts):
                mean[e] += float(shares[b, s, e])
    return experts * sum(f / count * p / count for f, p in zip(first, mean, strict=True))
