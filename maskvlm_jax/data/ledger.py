"""What a run has read: a fingerprint of (position, example) over the whole stream, kept in its checkpoints.

Two runs with one fingerprint read the same examples at the same positions, however often they were stopped and on
however many processes they ran: the fingerprint is a sum of hashes modulo 2^64, so every process adds up its own rows,
and the sum over processes does not depend on how the rows were shared.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from maskvlm_jax.runtime.errors import UserError

MODULUS = 2**64


def hash_rows(positions: np.ndarray, examples: np.ndarray) -> int:
    """The sum modulo 2^64 of a 64-bit hash of each (position, example) pair."""
    with np.errstate(over="ignore"):
        mixed = _mix(positions.astype(np.uint64)) ^ _mix(~examples.astype(np.uint64))
        return int(np.sum(_mix(mixed), dtype=np.uint64))


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele, Lea and Flood, 2014): every bit of the input changes half of the output's."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Ledger:
    """Adds up the rows that this process reads.

    Args:
        source: the fingerprint of what is read.
        batch_size: global.
        rows: places of this process's examples in a global batch.
        counted: which of them no process before this one reads too.
    """

    def __init__(self, source: str, *, batch_size: int, rows: np.ndarray, counted: np.ndarray):
        self._source, self._batch_size, self._rows, self._counted = source, batch_size, rows, counted
        self._own, self._last = 0, 0

    def add(self, step: int, examples: np.ndarray) -> None:
        """Counts this process's rows of the batch of `step`, the first being 1."""
        positions = (step - 1) * self._batch_size + self._rows[self._counted]
        self._last = hash_rows(positions, examples[self._counted])
        self._own = (self._own + self._last) % MODULUS

    def take(self) -> dict[str, int]:
        """What was added since the last call, and of it the last batch; to be added up over processes."""
        taken, self._own = {"rows": self._own, "last_batch": self._last}, 0
        return taken

    def entry(self, before: str, taken: list[dict[str, int]]) -> dict[str, str]:
        """What a checkpoint remembers: the sum `before`, and what every process has taken since."""
        total = (int(before, 16) + sum(part["rows"] for part in taken)) % MODULUS
        last = sum(part["last_batch"] for part in taken) % MODULUS
        return {"source": self._source, "rows": f"{total:016x}", "last_batch": f"{last:016x}"}


def check(earlier: Mapping[str, Any], *, source: str, step: int, batch_size: int, order: Callable[[int], int]) -> None:
    """Makes sure that the stream goes on where it was when `earlier` was written at `step`.

    Args:
        order: position -> example number, of the stream as it would be read now.

    Raises:
        UserError: the data or their order are no longer those that the run began with.
    """
    if earlier["source"] != source:
        raise UserError(
            "the training data are not those that this run began with (examples or captions were added, removed or "
            "changed); bring them back, or train in another --workdir with --config.checkpoint"
        )
    positions = (step - 1) * batch_size + np.arange(batch_size)
    examples = np.array([order(int(position)) for position in positions])
    if step and earlier["last_batch"] != f"{hash_rows(positions, examples):016x}":
        raise UserError(
            "the examples would come in another order than in the steps that this run has made: another version of "
            "grain or of this package made them; use that one, or another --workdir with --config.checkpoint"
        )
