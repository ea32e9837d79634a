"""Which patches and tokens are hidden: drawn on the host, per example, with exact counts."""

import math

import numpy as np


def masked_cell_count(cells: int, ratio: float) -> int:
    """Cells hidden out of `cells`: rounded up, as SimMIM (30 of 49 at 60 %)."""
    return math.ceil(ratio * cells)


def masked_patch_count(grid: int, *, cell: int, ratio: float) -> int:
    """Patches hidden in a `grid` x `grid` image whose masking unit is `cell` x `cell` patches."""
    return masked_cell_count((grid // cell) ** 2, ratio) * cell**2


def sample_image_mask(rng: np.random.Generator, grid: int, *, cell: int, ratio: float) -> np.ndarray:
    """image_masked, (grid * grid,) bool: whole cells of `cell` x `cell` patches, chosen uniformly."""
    side = grid // cell
    hidden = np.zeros(side * side, bool)
    hidden[rng.permutation(side * side)[: masked_cell_count(side * side, ratio)]] = True
    return hidden.reshape(side, side).repeat(cell, axis=0).repeat(cell, axis=1).reshape(-1)


def masked_token_count(tokens: int, ratio: float) -> int:
    """Tokens hidden out of `tokens` real, non-special ones: rounded up, at least one where there is one."""
    return min(tokens, max(1, math.ceil(ratio * tokens))) if ratio else 0


def sample_ratios(rng: np.random.Generator, options: dict) -> dict:
    """`config.masking` with the ratios of one example.

    "independent": those of the config. "modality_aware" (MLIM, arXiv 2109.12178): with equal probability the picture
    heavily and no word, the words heavily and no patch, or both lightly.
    """
    if options["policy"] == "independent":
        return options
    heavy_image, heavy_text, light = options["image_ratio"], options["text_ratio"], options["light_ratio"]
    image, text = ((heavy_image, 0.0), (0.0, heavy_text), (light, light))[int(rng.integers(3))]
    return options | {"image_ratio": image, "text_ratio": text}


def sample_text_mask(
    rng: np.random.Generator, word_ids: np.ndarray, *, ratio: float, whole_word: bool = False
) -> np.ndarray:
    """text_masked, (L,) bool.

    Args:
        word_ids: (L,) the word each token belongs to; -1 for special tokens and padding, which are never hidden.
        ratio: share of the real tokens that is hidden.
        whole_word: hide all tokens of a word or none. Words are taken in random order and one that would exceed the
            count is passed over, as BERT; the count is then a maximum. Where no word fits, some tokens of one word are.
    """
    masked = np.zeros(len(word_ids), bool)
    candidates = np.flatnonzero(word_ids >= 0)
    count = masked_token_count(len(candidates), ratio)
    order = rng.permutation(candidates)
    if not whole_word:
        masked[order[:count]] = True
        return masked
    for word in dict.fromkeys(word_ids[order]):
        tokens = word_ids == word
        if masked.sum() + tokens.sum() <= count:
            masked |= tokens
    if count and not masked.any():
        masked[np.flatnonzero(word_ids == word_ids[order[0]])[:count]] = True
    return masked


def corrupt_tokens(
    rng: np.random.Generator,
    tokens: np.ndarray,
    text_masked: np.ndarray,
    *,
    mask_id: int,
    ordinary_ids: np.ndarray,
    corruption: str,
) -> np.ndarray:
    """tokens_masked, (L,) int32: what the text encoder sees in the masked view.

    Args:
        ordinary_ids: ids of the vocabulary that are no special tokens.
        corruption: "mask" puts the mask token at every hidden position (Wettig et al. 2022); "bert" the mask token at
            80 %, a random token at 10 % and the token itself at 10 % (Devlin et al. 2019).
    """
    corrupted = np.where(text_masked, mask_id, tokens).astype(np.int32)
    if corruption == "bert":
        kind = rng.random(len(tokens))
        random_ids = rng.choice(ordinary_ids, len(tokens))
        corrupted = np.where(text_masked & (kind >= 0.8), random_ids, corrupted)
        corrupted = np.where(text_masked & (kind >= 0.9), tokens, corrupted).astype(np.int32)
    return corrupted
