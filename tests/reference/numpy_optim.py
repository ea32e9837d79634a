"""AdamW and its schedule, one scalar rule after the other (Loshchilov and Hutter 2019, Algorithm 2)."""

import math

import numpy as np

EPSILON = 1e-8


def learning_rate(step: int, *, lr: float, warmup_steps: int, steps: int, final_ratio: float) -> float:
    """Linear from 0 to `lr`, then a cosine to `lr * final_ratio` at `steps`."""
    if step < warmup_steps:
        return lr * step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / (steps - warmup_steps))
    floor = lr * final_ratio
    return floor + 0.5 * (lr - floor) * (1.0 + math.cos(math.pi * progress))


def clipped(grads: dict[str, np.ndarray], norm: float) -> dict[str, np.ndarray]:
    """Gradients scaled so that their global norm is at most `norm`."""
    total = math.sqrt(sum(float(np.sum(grad**2)) for grad in grads.values()))
    return {path: grad * min(1.0, norm / total) for path, grad in grads.items()}


class AdamW:
    """AdamW over a flat dict of float64 arrays.

    Args:
        decay: path -> weight decay of that parameter.
        ratio: path -> its learning rate over the schedule's.
    """

    def __init__(self, params: dict[str, np.ndarray], *, decay: dict, ratio: dict, b1: float, b2: float):
        self.params = {path: np.array(value, np.float64) for path, value in params.items()}
        self.first = {path: np.zeros_like(value) for path, value in self.params.items()}
        self.second = {path: np.zeros_like(value) for path, value in self.params.items()}
        self.decay, self.ratio, self.b1, self.b2, self.count = decay, ratio, b1, b2, 0

    def step(self, grads: dict[str, np.ndarray], lr: float) -> None:
        """Moves every parameter by one step."""
        self.count += 1
        for path, grad in grads.items():
            self.first[path] = self.b1 * self.first[path] + (1 - self.b1) * grad
            self.second[path] = self.b2 * self.second[path] + (1 - self.b2) * grad**2
            mean = self.first[path] / (1 - self.b1**self.count)
            spread = np.sqrt(self.second[path] / (1 - self.b2**self.count))
            direction = mean / (spread + EPSILON) + self.decay[path] * self.params[path]
            self.params[path] = self.params[path] - lr * self.ratio[path] * direction
