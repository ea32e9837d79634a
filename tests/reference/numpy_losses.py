"""Losses in plain NumPy loops and float64, written from the equations: what the package's losses are held against."""

import math
from typing import NamedTuple

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of one row of logits."""
    weights = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return weights / weights.sum()


def cross_entropy(logits: np.ndarray, label: int) -> float:
    """-log softmax(logits)[label] of one row."""
    logits = np.asarray(logits, np.float64)
    top = logits.max()
    return float(top + np.log(np.exp(logits - top).sum()) - logits[label])


def patchify(image: np.ndarray, patch: int) -> np.ndarray:
    """(B, Y, X, 3) -> (B, N, patch * patch * 3): patches row by row, values as (row, column, channel)."""
    batch, height, width, channels = image.shape
    rows, columns = height // patch, width // patch
    result = np.zeros((batch, rows * columns, patch * patch * channels), image.dtype)
    for b in range(batch):
        for r in range(rows):
            for c in range(columns):
                square = image[b, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
                result[b, r * columns + c] = square.reshape(-1)
    return result


def masked_pixel_error(pred: np.ndarray, target: np.ndarray, valid: np.ndarray, power: int) -> float:
    """Mean of |error|^power over the pixels and channels of all masked patches of the batch; 0 where there is none."""
    errors = []
    for b, m in np.ndindex(*valid.shape):
        if valid[b, m]:
            errors += [abs(float(p) - float(t)) ** power for p, t in zip(pred[b, m], target[b, m], strict=True)]
    return sum(errors) / len(errors) if errors else 0.0


def normalised_patches(patches: np.ndarray) -> np.ndarray:
    """Each patch less its mean, over the root of its unbiased variance and 1e-6."""
    result = np.zeros(patches.shape)
    for b, n in np.ndindex(*patches.shape[:2]):
        values = np.asarray(patches[b, n], np.float64)
        variance = sum((v - values.mean()) ** 2 for v in values) / (len(values) - 1)
        result[b, n] = (values - values.mean()) / math.sqrt(variance + 1e-6)
    return result


def masked_token_cross_entropy(logits: np.ndarray, target: np.ndarray, valid: np.ndarray) -> float:
    """Mean over all masked tokens of the batch; 0 where there is none."""
    losses = [cross_entropy(logits[b, m], target[b, m]) for b, m in np.ndindex(*valid.shape) if valid[b, m]]
    return sum(losses) / len(losses) if losses else 0.0


def same_pair(pair_id: np.ndarray) -> np.ndarray:
    """(B, B) bool: equal pictures (first id) or equal captions (second id)."""
    size = len(pair_id)
    result = np.zeros((size, size), bool)
    for k in range(size):
        for n in range(size):
            result[k, n] = pair_id[k, 0] == pair_id[n, 0] or pair_id[k, 1] == pair_id[n, 1]
    return result


def contrastive(similarity: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Per example the sum of both directions; off the diagonal, entries of the same pair take no part."""
    losses = np.zeros(len(similarity))
    for k in range(len(similarity)):
        others = [n for n in range(len(similarity)) if n != k and not same[k, n]]
        image_to_text = [similarity[k, k], *(similarity[k, n] for n in others)]
        text_to_image = [similarity[k, k], *(similarity[n, k] for n in others)]
        losses[k] = cross_entropy(image_to_text, 0) + cross_entropy(text_to_image, 0)
    return losses


def contrastive_to_all(similarity: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Per example the sum of both directions, each the mean cross entropy of all its positives."""
    losses = np.zeros(len(similarity))
    for k in range(len(similarity)):
        for scores, positives in ((similarity[k], same[k]), (similarity[:, k], same[:, k])):
            losses[k] += np.mean([cross_entropy(scores, n) for n in range(len(scores)) if positives[n]])
    return losses


def negative_probabilities(similarity: np.ndarray, same: np.ndarray) -> np.ndarray:
    """(B, B): softmax of each row over the columns that are not the same pair; a row without any is zero."""
    result = np.zeros(similarity.shape)
    for k in range(len(similarity)):
        allowed = [n for n in range(len(similarity)) if not same[k, n]]
        if allowed:
            result[k, allowed] = softmax(similarity[k, allowed])
    return result


def semi_hard_probabilities(similarity: np.ndarray, same: np.ndarray) -> np.ndarray:
    """(B, B): softmax of each row over the candidates that are less similar than its own column; where there is none,
    over all candidates."""
    result = np.zeros(similarity.shape)
    for k, row in enumerate(similarity):
        candidates = [n for n in range(len(row)) if not same[k, n]]
        less = [n for n in candidates if row[n] < row[k]]
        if candidates:
            result[k, less or candidates] = softmax(row[less or candidates])
    return result


def matching(logits: np.ndarray, valid: np.ndarray) -> float:
    """Mean cross entropy over the valid ones of 3 pairs an example, labelled matched, unmatched, unmatched."""
    labels = (1, 0, 0)
    losses = [cross_entropy(logits[b, g], labels[g]) for b, g in np.ndindex(*valid.shape) if valid[b, g]]
    return sum(losses) / len(losses)


def reconstruction(pred: np.ndarray, target: np.ndarray, counted: np.ndarray) -> float:
    """Squared error summed over the three channels, mean over all pixels of the counted patches; 0 where none is."""
    errors = []
    for b, n in np.ndindex(*counted.shape):
        if counted[b, n]:
            for p, t in zip(pred[b, n].reshape(-1, 3), target[b, n].reshape(-1, 3), strict=True):
                errors.append(sum((float(x) - float(y)) ** 2 for x, y in zip(p, t, strict=True)))
    return sum(errors) / len(errors) if errors else 0.0


def matching_log_odds(vector: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> float:
    """log p(matched) / p(unmatched) of one pair, from the probabilities of its two classes."""
    unmatched, matched = softmax(np.asarray(vector, np.float64) @ kernel + bias)
    return float(np.log(matched) - np.log(unmatched))


def unit(x: np.ndarray) -> np.ndarray:
    """Vectors of unit length."""
    x = np.asarray(x, np.float64)
    return x / np.sqrt((x**2).sum(axis=-1, keepdims=True))


def vector_distance(pred: np.ndarray, target: np.ndarray, valid: np.ndarray, power: int) -> float:
    """Mean over all valid positions of the batch of the sum over the width of |pred - target|^power."""
    distances = [
        sum(abs(float(p) - float(t)) ** power for p, t in zip(pred[b, m], target[b, m], strict=True))
        for b, m in np.ndindex(*valid.shape)
        if valid[b, m]
    ]
    return sum(distances) / len(distances) if distances else 0.0


def distilled_cross_entropy(logits: np.ndarray, teacher: np.ndarray, excluded: np.ndarray, alpha: float) -> np.ndarray:
    """Per row: cross entropy with alpha times the teacher's softmax plus 1 - alpha times the own column."""
    losses = np.zeros(len(logits))
    for b in range(len(logits)):
        kept = [c for c in range(logits.shape[1]) if not excluded[b, c]]
        probability, soft = softmax(logits[b, kept]), softmax(teacher[b, kept])
        for place, column in enumerate(kept):
            target = alpha * soft[place] + (1 - alpha) * (column == b)
            losses[b] -= target * np.log(probability[place])
    return losses


def soft_cross_entropy(logits: np.ndarray, teacher: np.ndarray, valid: np.ndarray) -> float:
    """Mean over all valid positions of the cross entropy with the teacher's softmax."""
    losses = [
        -float(np.sum(softmax(teacher[b, m]) * np.log(softmax(logits[b, m]))))
        for b, m in np.ndindex(*valid.shape)
        if valid[b, m]
    ]
    return sum(losses) / len(losses) if losses else 0.0


class PairClasses(NamedTuple):
    """Of a batch of pairs: logits (B, C), the mean cross entropy, and its gradient to the two layers."""

    logits: np.ndarray
    loss: float
    gradient: dict[str, dict[str, np.ndarray]]


def pair_classes(
    vectors: list[np.ndarray], head: dict[str, dict[str, np.ndarray]], label: np.ndarray, *, combine: str
) -> PairClasses:
    """H(y, softmax(W2 gelu(W1 z + b1) + b2)), z the vector of the pair, or of two: [a, b], and for "compare" also a b
    and |a - b|."""
    normal = np.vectorize(lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2))))
    w1, b1, w2, b2 = (np.asarray(head[layer][part], float) for layer in head for part in ("kernel", "bias"))
    gradient = [np.zeros_like(value) for value in (w1, b1, w2, b2)]
    logits, losses = [], []
    for row in range(len(label)):
        own = [np.asarray(vector[row], float) for vector in vectors]
        z = np.concatenate([*own, own[0] * own[1], np.abs(own[0] - own[1])] if combine == "compare" else own)
        before = z @ w1 + b1
        hidden = before * normal(before)
        logits.append(hidden @ w2 + b2)
        losses.append(cross_entropy(logits[-1], label[row]))
        error = (softmax(logits[-1]) - np.eye(len(b2))[label[row]]) / len(label)
        slope = normal(before) + before * np.exp(-(before**2) / 2) / math.sqrt(2 * math.pi)
        behind = (w2 @ error) * slope
        for total, part in zip(gradient, (np.outer(z, behind), behind, np.outer(hidden, error), error), strict=True):
            total += part
    names = [(layer, part) for layer in head for part in ("kernel", "bias")]
    told: dict[str, dict[str, np.ndarray]] = {layer: {} for layer in head}
    for (layer, part), value in zip(names, gradient, strict=True):
        told[layer][part] = value
    return PairClasses(np.stack(logits), float(np.mean(losses)), told)
