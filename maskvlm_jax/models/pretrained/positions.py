"""Learned positions of a grid of patches, resized to another grid, as PyTorch's `interpolate` does it."""

import numpy as np

from maskvlm_jax.runtime.errors import UserError


def resize(position_PD: np.ndarray, first: int, side: int, *, antialias: bool = False) -> np.ndarray:
    """Positions for a grid of `side` x `side` patches.

    Args:
        position_PD: of `first` other tokens, then of the patches of a square grid, row by row.
        first: tokens before the patches; theirs stay.
        antialias: average over what a smaller grid leaves out.

    Raises:
        UserError: the old grid is no square.
    """
    grid_ND = position_PD[first:]
    old = round(len(grid_ND) ** 0.5)
    if not old or old**2 != len(grid_ND):
        raise UserError(f"there are positions of {len(grid_ND)} patches, no square grid: the encoder cannot be read")
    if old == side:
        return position_PD
    weights = _weights(old, side, antialias)
    resized = np.einsum("ai,bj,ijd->abd", weights, weights, grid_ND.reshape(old, old, -1).astype(np.float64))
    return np.concatenate([position_PD[:first], resized.reshape(side**2, -1).astype(np.float32)])


def _weights(old: int, new: int, antialias: bool) -> np.ndarray:
    """(new, old): how much each old place counts for each new one; bicubic, places in the middles of their cells.

    PyTorch's kernel has a = -0.75 and repeats the border, and with antialiasing a = -0.5 and cuts the kernel there.
    """
    scale = old / new
    stretch, a = (max(scale, 1.0), -0.5) if antialias else (1.0, -0.75)
    weights = np.zeros((new, old))
    for place, row in enumerate(weights):
        centre, reach = (place + 0.5) * scale - 0.5, 2 * stretch
        for tap in range(int(np.floor(centre - reach)), int(np.ceil(centre + reach)) + 1):
            if antialias and not 0 <= tap < old:
                continue
            row[min(max(tap, 0), old - 1)] += _cubic(abs(tap - centre) / stretch, a)
    return weights / weights.sum(axis=1, keepdims=True)


def _cubic(x: float, a: float) -> float:
    """Keys' cubic convolution kernel."""
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0
