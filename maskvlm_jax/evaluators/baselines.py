"""What one modality alone gives, without a network: the floors that masked predictions are held against.

A model whose masked heads do not beat these has learned nothing of the other modality that shows.
"""

from collections.abc import Iterable

import numpy as np
from scipy import sparse

SMOOTHING = 1.0  # weight, in counts, of the coarser estimate that each finer one falls back to


class NeighbourWords:
    """A masked token from the tokens to its left and right, by their counts in training captions.

    p(w | l, r) is the counts of (l, w, r), smoothed by p(w | l) p(w | r) / p(w); p(w | l) and p(w | r) are counts of
    pairs, smoothed by those of w. A neighbour that is masked too tells nothing.

    Args:
        tokens_TL, valid_TL: captions as in a batch; start and end token are neighbours like others.
        vocab_size: ids are below it.
    """

    def __init__(self, tokens_TL: np.ndarray, valid_TL: np.ndarray, vocab_size: int):
        self._size = vocab_size
        left, word, right = (tokens_TL[:, i : i + tokens_TL.shape[1] - 2] for i in range(3))
        whole = valid_TL[:, 2:]  # a valid third token has valid ones before it
        left, word, right = (x[whole].astype(np.int64) for x in (left, word, right))
        self._prior = (np.bincount(word, minlength=vocab_size) + 1e-3) / (len(word) + 1e-3 * vocab_size)
        self._after_left, self._before_right = (self._counts(side, word) for side in (left, right))
        pairs, rows = np.unique(left * vocab_size + right, return_inverse=True)
        self._row_of_pair = dict(zip(pairs.tolist(), range(len(pairs)), strict=True))
        self._between = self._counts(rows, word, len(pairs))

    def _counts(self, rows: np.ndarray, word: np.ndarray, size: int | None = None) -> sparse.csr_array:
        shape = (self._size if size is None else size, self._size)
        return sparse.coo_array((np.ones(len(word), np.float32), (rows, word)), shape).tocsr()

    def predict(self, left: int, right: int) -> int:
        """The likeliest token between two others; a negative one is not known."""
        sides = [(self._after_left, left), (self._before_right, right)]
        known = [self._smoothed(counts, row, self._prior) for counts, row in sides if row >= 0]
        if not known:
            return int(np.argmax(self._prior))
        product = np.prod(known, axis=0) / self._prior ** (len(known) - 1)
        pair = self._row_of_pair.get(left * self._size + right) if min(left, right) >= 0 else None
        if pair is not None:
            product = self._smoothed(self._between, pair, product / product.sum())
        return int(np.argmax(product))

    @staticmethod
    def _smoothed(counts: sparse.csr_array, row: int, coarser: np.ndarray) -> np.ndarray:
        first, last = counts.indptr[row : row + 2]
        result = SMOOTHING * coarser
        np.add.at(result, counts.indices[first:last], counts.data[first:last])
        return result / result.sum()

    def accuracy(self, text: dict[str, np.ndarray], texts: Iterable[int]) -> float:
        """Share of the masked tokens of some captions that it predicts, in percent."""
        right = count = 0
        for t in texts:
            tokens, masked = text["tokens"][t], text["text_masked"][t]
            shown = np.where(masked, -1, tokens)
            for place in np.flatnonzero(masked):
                right += self.predict(int(shown[place - 1]), int(shown[place + 1])) == tokens[place]
                count += 1
        return 100.0 * right / max(count, 1)


def blended_patches(image_BYXC: np.ndarray, masked_BN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each hidden patch as one colour: the mean of the visible patches' mean colours, weighted by 1 / distance².

    Args:
        image_BYXC: square pictures; masked_BN: True = hidden, as many in each picture.
    Returns:
        colour_BM3 and target_BMF3, the hidden patches' pixels, in the order of their positions.
    """
    batch, side = len(image_BYXC), round(masked_BN.shape[1] ** 0.5)
    patch = image_BYXC.shape[1] // side
    cut = image_BYXC.reshape(batch, side, patch, side, patch, 3).swapaxes(2, 3)
    cut = cut.reshape(batch, side * side, patch * patch, 3).astype(np.float64)
    place = np.stack(np.divmod(np.arange(side * side), side), axis=1)
    square = np.sum((place[:, None] - place[None]) ** 2, axis=-1)
    weight_BNN = np.where(masked_BN[:, None, :], 0.0, 1.0 / np.maximum(square, 1)[None])
    total_BN1 = weight_BNN.sum(axis=-1, keepdims=True)
    visible = np.einsum("bnm,bmc->bnc", weight_BNN, cut.mean(axis=2)) / np.maximum(total_BN1, 1e-12)
    # Nothing is visible: the mean of all pictures.
    colour_BN3 = np.where(total_BN1 > 0, visible, cut.mean(axis=(0, 1, 2)))
    return colour_BN3[masked_BN].reshape(batch, -1, 3), cut[masked_BN].reshape(batch, -1, patch * patch, 3)
