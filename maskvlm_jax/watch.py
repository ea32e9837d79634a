"""Looks at every step's numbers and examples, one step behind the device."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from maskvlm_jax import metrics
from maskvlm_jax.data.sources import Source
from maskvlm_jax.errors import UserError


class StepWatch:
    """Looks at each step's numbers once they are there: adds them up, and stops on a loss that is not finite.

    `told` is what a checkpoint remembers for the host.
    """

    def __init__(self, source: Source, max_broken: float, told: dict[str, Any]):
        self._source, self._max_broken, self.told, self._pending = source, max_broken, told, None

    def push(self, step: int, values: Mapping, host: Mapping[str, np.ndarray], progress: metrics.Progress) -> None:
        """Looks at the step before and remembers this one."""
        self.drain(progress)
        self._pending = (step, values, host)

    def drain(self, progress: metrics.Progress) -> None:
        """Looks at the step that is remembered, waiting for the device."""
        if self._pending is None:
            return
        step, values, host = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(dict(values)).items()}
        self._check_finite(step, values, host["index"])
        self._count_replaced(host)
        progress.add(values)

    def _check_finite(self, step: int, values: Mapping[str, float], index: np.ndarray) -> None:
        bad = [name for name, value in values.items() if not np.isfinite(value)]
        if bad:
            names = ", ".join(self._source.id(int(i)) for i in index)
            raise UserError(
                f"step {step}: {', '.join(bad)} not finite; the last checkpoint is untouched. Lower --config.optim.lr, "
                f"or look at the batch: {names}"
            )

    def _count_replaced(self, host: Mapping[str, np.ndarray]) -> None:
        self.told["seen"] += len(host["replaced"])
        if not host["replaced"].any():
            return
        self.told["replaced"] += int(host["replaced"].sum())
        self.told["last_replaced"] = name = self._source.id(int(host["index"][host["replaced"]][-1]))
        # A share of a few examples says nothing.
        if self.told["replaced"] > self._max_broken * max(self.told["seen"], 1000):
            raise UserError(
                f"{self.told['replaced']} of {self.told['seen']} pictures read could not be decoded, the last {name}; "
                "mend the data or raise --config.data.max_broken"
            )
