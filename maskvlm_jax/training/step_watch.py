"""Looks at every step's numbers and examples, one step behind the device."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from maskvlm_jax.data.ledger import Ledger
from maskvlm_jax.data.sources.base import Source
from maskvlm_jax.data.training_stream import BROKEN
from maskvlm_jax.runtime import metrics, processes
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.training.progress import Progress
from maskvlm_jax.training.train_step import SIGNAL

MOST_NAMED = 1_000  # broken examples that are remembered by name


class StepWatch:
    """Looks at each step's numbers once they are there: adds them up, and stops on a loss that is not finite.

    Args:
        source: what is trained on.
        max_broken: largest share of the examples read that may be broken.
        progress: of the run, to go on from; the same in every process.
        ledger: counts what is read.
        reads_negatives: some loss tells a pair from the others of its batch.

    Attributes:
        stop: the signal that some process had got when the last step that was looked at began, or 0.
    """

    def __init__(
        self, source: Source, max_broken: float, progress: Progress, ledger: Ledger, *, reads_negatives: bool = False
    ):
        self._source, self._max_broken, self.progress, self._ledger = source, max_broken, progress, ledger
        self._pending, self.stop, self._reads_negatives = None, 0, reads_negatives
        self._new = _nothing()

    def remember(self) -> Progress:
        """`progress` as of the last step that was looked at; every process must call it at the same step."""
        parts = processes.gather(self._new | {"stream": self._ledger.take()})
        progress = self.progress
        before = progress.stream["rows"] if progress.stream else "0"
        progress.stream = self._ledger.entry(before, [part["stream"] for part in parts])
        for part in parts:
            progress.seen += part["seen"]
            progress.replaced += part["replaced"]
            progress.broken = dict(list((progress.broken | part["broken"]).items())[:MOST_NAMED])
        self._new = _nothing()
        return progress

    def push(self, step: int, values: Mapping, host: Mapping[str, np.ndarray], meter: metrics.Meter) -> None:
        """Looks at the step before and remembers this one.

        Args:
            values: what the step computes.
            host: index, replaced and pair_id of its examples that this process read.
        """
        self.drain(meter)
        self._look_for_negatives(step, host)
        self._pending = (step, values, host)

    def drain(self, meter: metrics.Meter) -> None:
        """Looks at the step that is remembered, waiting for the device."""
        if self._pending is None:
            return
        step, values, host = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(dict(values)).items()}
        self.stop = int(values.pop(SIGNAL, 0))
        self._check_finite(step, values, host["index"])
        self._ledger.add(step, host["index"])
        self._count_replaced(host)
        meter.add(values)

    def _look_for_negatives(self, step: int, host: Mapping[str, np.ndarray]) -> None:
        """Says once that a batch has none."""
        if not self._reads_negatives:
            return
        pair_id_B2 = host["pair_id"]
        if (pair_id_B2 != pair_id_B2[0]).all(axis=1).any():  # the first example has one, as nearly always
            return
        if (pair_id_B2[:, None] == pair_id_B2).any(axis=2).all():
            self._reads_negatives = False
            print(
                f"warning: step {step} has no negatives: any two of its examples share a picture or a caption, and "
                "contrastive and matching losses learn nothing from it; look at the captions, or raise "
                "--config.batch_size"
            )

    def _check_finite(self, step: int, values: Mapping[str, float], index: np.ndarray) -> None:
        bad = [name for name, value in values.items() if not np.isfinite(value)]
        if bad:
            names = ", ".join(self._source.id(int(i)) for i in index)
            raise UserError(
                f"step {step}: {', '.join(bad)} not finite; the last checkpoint is untouched. Lower --config.optim.lr, "
                f"or look at the batch: {names}"
            )

    def _count_replaced(self, host: Mapping[str, np.ndarray]) -> None:
        replaced, new = host["replaced"], self._new
        new["seen"] += len(replaced)
        if not replaced.any():
            return
        new["replaced"] += int(np.count_nonzero(replaced))
        for index, kind in zip(host["index"][replaced > 0], replaced[replaced > 0], strict=True):
            name = self._source.id(int(index))
            if len(new["broken"]) < MOST_NAMED:
                new["broken"][name] = BROKEN[kind]
        total, seen = self.progress.replaced + new["replaced"], self.progress.seen + new["seen"]
        # A share of a few examples says nothing.
        if total > self._max_broken * max(seen, 1000):
            raise UserError(
                f"{total} of {seen} examples read were broken, the last {name} ({BROKEN[kind]}); "
                "mend the data or raise --config.data.max_broken"
            )


def _nothing() -> dict[str, Any]:
    return {"seen": 0, "replaced": 0, "broken": {}}
