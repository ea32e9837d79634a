"""Logistic regression of many classes by Newton's method in float64, from its definition."""

import numpy as np


def loss(weight_FC, bias_C, feature_IF, label_I, strength):
    """Mean negative log probability of the right classes, and ‖W‖² / (2 C n)."""
    total = 0.0
    for feature_F, label in zip(feature_IF, label_I, strict=True):
        logits_C = feature_F @ weight_FC + bias_C
        total -= logits_C[label] - np.log(np.sum(np.exp(logits_C)))
    return total / len(label_I) + np.sum(weight_FC**2) / (2 * strength * len(label_I))


def fit(feature_IF, label_I, classes, strength, steps=100):
    """W and b at the minimum, b with the sum 0."""
    count, width = feature_IF.shape
    decay = 1 / (strength * count)
    inputs = np.concatenate([feature_IF, np.ones((count, 1))], axis=1).astype(np.float64)
    target = np.eye(classes)[label_I]
    params = np.zeros((width + 1, classes))
    ridge = np.ones((width + 1, classes)) * decay
    ridge[-1] = 0
    for _ in range(steps):
        odds = np.exp(inputs @ params - (inputs @ params).max(1, keepdims=True))
        share = odds / odds.sum(1, keepdims=True)
        gradient = inputs.T @ (share - target) / count + ridge * params
        hessian = np.diag(ridge.ravel()).reshape(width + 1, classes, width + 1, classes)
        for a in range(classes):
            for b in range(classes):
                curve = share[:, a] * ((a == b) - share[:, b])
                hessian[:, a, :, b] += (inputs * curve[:, None]).T @ inputs / count
        size = params.size
        # A constant in all of b changes nothing: the least of the solutions.
        step = np.linalg.lstsq(hessian.reshape(size, size), gradient.ravel(), rcond=1e-13)[0]
        # Halved until the loss falls.
        scale = 1.0
        now = loss(params[:-1], params[-1], feature_IF, label_I, strength)
        while scale > 1e-8:
            trial = params - scale * step.reshape(params.shape)
            if loss(trial[:-1], trial[-1], feature_IF, label_I, strength) <= now:
                break
            scale /= 2
        params = params - scale * step.reshape(params.shape)
        if np.abs(gradient).max() < 1e-12:
            break
    return params[:-1], params[-1] - params[-1].mean()
