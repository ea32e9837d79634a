"""Heat over a picture as its definition has it, in NumPy, double precision and numerical derivatives; written from the
papers (arXiv 2107.07651, Sec. 6; arXiv 2208.02131, Fig. 3b), not from the package.

Parameters are a nested dict as the model's, with a leading axis of layers.
"""

import math

import numpy as np

_erf = np.vectorize(math.erf)


def _dense(p, x):
    return x @ p["kernel"] + p["bias"]


def _norm(p, x, eps):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * p["scale"] + p["bias"]


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _attend(p, x, context, real, heads, added=0.0):
    """The result, and the weights, (H, S, T)."""
    query, key, value = (
        _dense(p[name], y).reshape(len(y), heads, -1).swapaxes(0, 1)
        for name, y in (("query", x), ("key", context), ("value", context))
    )
    logits = query @ key.swapaxes(1, 2) / math.sqrt(query.shape[-1])
    weights = _softmax(np.where(real, logits, -1e30))
    return _dense(p["out"], ((weights + added) @ value).swapaxes(0, 1).reshape(len(x), -1)), weights


def _feed_forward(p, x):
    hidden = _dense(p["up"], x)
    return _dense(p["down"], hidden * 0.5 * (1 + _erf(hidden / math.sqrt(2))))


def _layer(tree, i):
    return {name: _layer(value, i) if isinstance(value, dict) else value[i] for name, value in tree.items()}


def cross_stack(p, x, x_real, memory, memory_real, *, depth, heads, eps, pre, probe=None, added=0.0):
    """The first position behind all blocks, and the weights over the memory in layer `probe`, to which `added` is
    added."""
    found = None
    for i in range(depth):
        b = _layer(p["blocks"]["block"], i)
        before = (lambda name, y, b=b: _norm(b[name], y, eps)) if pre else (lambda name, y: y)
        behind = (lambda name, y: y) if pre else (lambda name, y, b=b: _norm(b[name], y, eps))
        y = before("norm1", x)
        x = behind("norm1", x + _attend(b["self_attention"], y, y, x_real, heads)[0])
        y = before("norm2", x)
        change, weights = _attend(b["cross_attention"], y, memory, memory_real, heads, added if i == probe else 0.0)
        found = weights if i == probe else found
        x = behind("norm2", x + change)
        x = behind("norm3", x + _feed_forward(b["feed_forward"], before("norm3", x)))
    return (_norm(p["norm"], x, eps) if pre else x)[0], found


def heat(score, weights, real, first_patch, *, step=1e-5):
    """(L, N): mean over heads of A · max(dy/dA, 0) at the patches, one derivative after the other.

    Args:
        score: of what is added to the weights, (H, L, T), a number.
        weights: (H, L, T); real: (L,) which words are; first_patch: of the T positions.
    """
    gradient = np.zeros_like(weights)
    for place in np.ndindex(weights.shape):
        if real[place[1]] and place[2] >= first_patch:
            added = np.zeros_like(weights)
            added[place] = step
            gradient[place] = (score(added) - score(-added)) / (2 * step)
    return (weights * np.maximum(gradient, 0)).mean(0)[:, first_patch:]


def grounded(heat, boxes, truth):
    """Whether the box with the largest sum of heat over the root of its area overlaps the true one by half at least
    (IoU), boxes (x0, y0, x1, y1) in whole pixels; a picture without warmth in any box is wrong."""
    best, chosen = 0.0, None
    for box in boxes:
        x0, y0, x1, y1 = box
        total = 0.0
        for y in range(y0, y1):
            for x in range(x0, x1):
                total += float(heat[y, x])
        total /= math.sqrt((x1 - x0) * (y1 - y0))
        if total > best:
            best, chosen = total, box
    if chosen is None:
        return False
    width = min(chosen[2], truth[2]) - max(chosen[0], truth[0])
    height = min(chosen[3], truth[3]) - max(chosen[1], truth[1])
    common = max(width, 0) * max(height, 0)
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])  # noqa: E731
    return common >= 0.5 * (area(chosen) + area(truth) - common)


def bicubic(cells, height, width):
    """(height, width) of square cells (G, G): Keys' kernel, a = -0.75, pixel by pixel, borders repeated."""

    def kernel(t):
        t, a = abs(t), -0.75
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    side, out = len(cells), np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y, x = (i + 0.5) * side / height - 0.5, (j + 0.5) * side / width - 0.5
            for r in range(math.floor(y) - 1, math.floor(y) + 3):
                for c in range(math.floor(x) - 1, math.floor(x) + 3):
                    value = cells[min(max(r, 0), side - 1), min(max(c, 0), side - 1)]
                    out[i, j] += value * kernel(y - r) * kernel(x - c)
    return out
