"""Calibration of probabilities, one pair at a time."""

import math


def probability(log_odds: float) -> float:
    """Of a pair that is as likely matched as not, from the log-odds of one matched pair among two unmatched ones."""
    odds = 2 * math.exp(log_odds)
    return odds / (1 + odds)


def calibration_error(matched: list[float], unmatched: list[float], bins: int) -> float:
    """Percent: how far the share of matched pairs is from the mean probability, a bin weighing as many as are in it."""
    pairs = [(probability(odds), 1) for odds in matched] + [(probability(odds), 0) for odds in unmatched]
    error = 0.0
    for number in range(bins):
        inside = [
            (p, y) for p, y in pairs if number / bins <= p < (number + 1) / bins or (p == 1 and number == bins - 1)
        ]
        if inside:
            share = sum(y for _, y in inside) / len(inside)
            error += len(inside) / len(pairs) * abs(share - sum(p for p, _ in inside) / len(inside))
    return 100 * error


def log_loss(matched: list[float], unmatched: list[float]) -> float:
    """Nats."""
    told = [probability(odds) for odds in matched] + [1 - probability(odds) for odds in unmatched]
    return -sum(math.log(p) for p in told) / len(told)


def inside_wilson(share: float, count: int, p: float) -> bool:
    """Whether p lies in the 95 % interval of a share: p is 1.96 of its own standard errors away at most (Wilson)."""
    return abs(share - p) <= 1.96 * math.sqrt(p * (1 - p) / count)
