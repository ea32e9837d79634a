"""Histograms of oriented gradients pixel by pixel in float64, from the equations of FastMIM (arXiv 2212.06593)."""

import math

import numpy as np

KERNEL = ((1, 0, -1), (2, 0, -2), (1, 0, -1))


def mirrored(index: int, size: int) -> int:
    """A row or column beyond the border, as one within: the border itself is not repeated."""
    return -index if index < 0 else 2 * (size - 1) - index if index >= size else index


def gradient(channel: np.ndarray, y: int, x: int) -> tuple[float, float]:
    """Both cross-correlations at one pixel."""
    rows, columns = channel.shape
    gx = gy = 0.0
    for i in range(3):
        for j in range(3):
            value = float(channel[mirrored(y + i - 1, rows), mirrored(x + j - 1, columns)])
            gx += KERNEL[i][j] * value
            gy += KERNEL[j][i] * value
    return gx, gy


def bin_of(gx: float, gy: float) -> int:
    return math.floor(math.atan2(gx, gy) / math.pi * 9) % 9


def histograms(image: np.ndarray, cell: int, least: float = 1e-12) -> np.ndarray:
    """(rows of cells, columns of cells, C, 9) of one picture (Y, X, C)."""
    height, width, channels = image.shape
    found = np.zeros((height // cell, width // cell, channels, 9))
    for y, x, c in np.ndindex(height, width, channels):
        gx, gy = gradient(image[..., c], y, x)
        found[y // cell, x // cell, c, bin_of(gx, gy)] += math.hypot(gx, gy)
    for place in np.ndindex(found.shape[:3]):
        found[place] /= max(math.sqrt(sum(v * v for v in found[place])), least)
    return found


def of_patches(image: np.ndarray, patch: int, cell: int) -> np.ndarray:
    """(N, F): the histograms of each patch, its cells row by row."""
    cells, side = histograms(image, cell), patch // cell
    rows = []
    for top in range(0, len(cells), side):
        for left in range(0, cells.shape[1], side):
            rows.append(cells[top : top + side, left : left + side].reshape(-1))
    return np.stack(rows)


def masked_loss(pred: np.ndarray, target: np.ndarray, masked: np.ndarray, power: int = 2) -> float:
    """Mean over masked patches of a batch, and their values; all (B, N, F), masked (B, N)."""
    errors = [
        abs(float(pred[b, n, f]) - float(target[b, n, f])) ** power
        for b, n, f in np.ndindex(pred.shape)
        if masked[b, n]
    ]
    return sum(errors) / len(errors)
