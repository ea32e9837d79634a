"""Histograms of oriented gradients (Dalal and Triggs 2005) as targets of masked patches: FastMIM (arXiv 2212.06593).

    g_x = x ⋆ [[1, 0, -1], [2, 0, -2], [1, 0, -1]],   g_y = x ⋆ its transpose      by channel, borders mirrored
    m = √(g_x² + g_y²),   b = ⌊ atan2(g_x, g_y) / π · 9 ⌋ mod 9
    h_b = Σ m over the pixels of a cell whose bin is b,   h ← h / max(‖h‖₂, ε)

The paper's ε is 1e-12: what is in a cell counts, and not how strong it is, also where that is noise alone. Histograms
change little where a picture is made smaller, which colours do. As MaskFeat's (arXiv 2112.09133) without its window: a
pixel counts in one bin of one cell, and cells are normalised by themselves, not in blocks.
"""

import jax
import jax.numpy as jnp

BINS = 9  # of half a turn


def gradients(image_BYXC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """g_x and g_y of every pixel and channel, by Sobel's kernels."""
    padded = jnp.pad(image_BYXC, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    across, down = padded[:, :, :-2] - padded[:, :, 2:], padded[:, :-2] - padded[:, 2:]
    gx_BYXC = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]
    gy_BYXC = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    return gx_BYXC, gy_BYXC


def bins(gx: jax.Array, gy: jax.Array) -> jax.Array:
    """b of each pixel, int32 from 0 to 8.

    The gradient is turned into the half plane of angles from 0 to π first: of an edge along an axis, whose angle is 0
    or π, no rounding then decides.
    """
    turned = jnp.where((gx < 0) | ((gx == 0) & (gy < 0)), -1, 1)
    angle = jnp.arctan2(turned * gx, turned * gy)
    return jnp.minimum((angle / jnp.pi * BINS).astype(jnp.int32), BINS - 1)


def histograms(image_BYXC: jax.Array, cell: int, least: float = 0.0) -> jax.Array:
    """(B, rows of cells, columns of cells, C, 9) float32, each of length 1, or 0 where a cell is of one colour.

    Args:
        image_BYXC: pixels, a multiple of `cell` a side; whole numbers have gradients without a rounding.
        cell: pixels of a side of the squares that a histogram is made of.
        least: ε, the length of h from which on it is made 1, in the pixels' units; 0 = the paper's, with which neither
            brightness nor contrast of a channel changes anything.
    """
    gx_BYXC, gy_BYXC = gradients(image_BYXC.astype(jnp.float32))
    size_BYXC, bin_BYXC = jnp.sqrt(gx_BYXC**2 + gy_BYXC**2), bins(gx_BYXC, gy_BYXC)
    counted = jnp.where(bin_BYXC[..., None] == jnp.arange(BINS), size_BYXC[..., None], 0.0)
    batch, rows, columns, channels = image_BYXC.shape
    cells = counted.reshape(batch, rows // cell, cell, columns // cell, cell, channels, BINS)
    sums = jnp.sum(cells, axis=(2, 4))
    return sums / jnp.maximum(jnp.sqrt(jnp.sum(sums**2, axis=-1, keepdims=True)), max(least, 1e-12))


def of_patches(image_BYXC: jax.Array, *, patch: int, cell: int, least: float = 0.0) -> jax.Array:
    """target_BNF of every patch: the histograms of its cells row by row, those of the channels side by side."""
    found = histograms(image_BYXC, cell, least)
    batch, rows, columns = found.shape[:3]
    side = patch // cell  # cells of a patch
    cut = found.reshape(batch, rows // side, side, columns // side, side, -1).swapaxes(2, 3)
    return cut.reshape(batch, (rows // side) * (columns // side), -1)
