"""Sines and cosines that learned positions start from where a model is trained from scratch.

Wavelengths span the sequence that there is, from four positions to four times its length, and the mean over positions
is taken off, so that places differ from the first step. The usual wavelengths of up to 10,000 (Vaswani et al. 2017,
MAE) hardly differ from place to place on a short sequence: on a 3 x 3 grid of patches their cosines are 0.88 to 0.98.
A shift by some positions is one rotation for all of them, which attention to "the word before" can be learned from in
few steps; from random positions it is learned pair by pair.
"""

import numpy as np


def waves(length: int, width: int) -> np.ndarray:
    """(length, width) of mean square 1; a width that is odd ends with a zero."""
    rates = np.geomspace(np.pi / 2, np.pi / (2 * length), width // 2)
    angles = np.arange(length)[:, None] * rates
    both = np.concatenate([np.sin(angles), np.cos(angles), np.zeros((length, width % 2))], axis=1)
    both -= both.mean(axis=0)
    return (both / np.sqrt(max(np.mean(both**2), 1e-12))).astype(np.float32)


def grid_waves(side: int, width: int) -> np.ndarray:
    """(side * side, width) of mean square 1, row by row: half of the width tells the row, half the column."""
    half = waves(side, width // 2)
    row, column = np.repeat(half, side, axis=0), np.tile(half, (side, 1))
    return np.concatenate([row, column, np.zeros((side**2, width % 2), np.float32)], axis=1)
