"""Scores of classes of pairs in plain loops, written from their descriptions."""

import numpy as np


def nlvr2_scores(identifiers: list[str], right: np.ndarray) -> dict[str, float]:
    """Accuracy and consistency in percent: identifiers are SPLIT-SET-PAIR-SENTENCE, and a sentence of a set is told
    consistently if it is of all its pairs (NLVR2's README and the paper, arXiv 1811.00491)."""
    pairs_of: dict[tuple[str, str, str], list[bool]] = {}
    for identifier, one in zip(identifiers, right, strict=True):
        split, number, _, sentence = identifier.split("-")
        pairs_of.setdefault((split, number, sentence), []).append(bool(one))
    consistent = [all(of_sentence) for of_sentence in pairs_of.values()]
    return {
        "accuracy": 100 * sum(map(bool, right)) / len(right),
        "consistency": 100 * sum(consistent) / len(consistent),
    }


def binary_scores(score: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Accuracy of the sign, average precision Σ (R_n - R_(n-1)) P_n over thresholds from high to low, and the share of
    (positive, negative) that are in order, ties counting half; in percent."""
    precision_sum = recall_before = 0.0
    for threshold in sorted(set(score.tolist()), reverse=True):
        taken = score >= threshold
        recall, precision = (taken & label).sum() / label.sum(), (taken & label).sum() / taken.sum()
        precision_sum += (recall - recall_before) * precision
        recall_before = recall
    pairs = [(p, n) for p in score[label] for n in score[~label]]
    in_order = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs)
    right = sum((s > 0) == bool(y) for s, y in zip(score, label, strict=True))
    return {
        "pairs_accuracy": 100 * right / len(score),
        "pairs_pr_auc": 100 * precision_sum,
        "pairs_roc_auc": 100 * in_order / len(pairs),
    }
