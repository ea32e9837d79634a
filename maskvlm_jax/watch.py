"""Looks at every step's numbers and examples, one step behind the device."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from maskvlm_jax import metrics, sharding
from maskvlm_jax.data.ledger import Ledger
from maskvlm_jax.data.pipeline import BROKEN
from maskvlm_jax.data.sources import Source
from maskvlm_jax.errors import UserError

MOST_NAMED = 1_000  # broken examples that are remembered by name


class StepWatch:
    """Looks at each step's numbers once they are there: adds them up, and stops on a loss that is not finite.

    Args:
        source: what is trained on.
        max_broken: largest share of the examples read that may be broken.
        told: what a checkpoint remembers for the host, to go on from.
        ledger: counts what is read.
    """

    def __init__(self, source: Source, max_broken: float, told: dict[str, Any], ledger: Ledger):
        self._source, self._max_broken, self.told, self._ledger = source, max_broken, told, ledger
        self._pending = None

    def remember(self) -> dict[str, Any]:
        """`told` as of the last step that was looked at; every process must call it at the same step."""
        self.told["stream"] = self._ledger.told(sharding.sum_over_processes)
        return self.told

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
        self._ledger.add(step, host["index"])
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
        replaced = host["replaced"]
        self.told["seen"] += len(replaced)
        if not replaced.any():
            return
        self.told["replaced"] += int(np.count_nonzero(replaced))
        for index, kind in zip(host["index"][replaced > 0], replaced[replaced > 0], strict=True):
            name = self._source.id(int(index))
            if len(self.told["broken"]) < MOST_NAMED:
                self.told["broken"][name] = BROKEN[kind]
        # A share of a few examples says nothing.
        if self.told["replaced"] > self._max_broken * max(self.told["seen"], 1000):
            raise UserError(
                f"{self.told['replaced']} of {self.told['seen']} examples read were broken, the last {name} "
                f"({BROKEN[kind]}); mend the data or raise --config.data.max_broken"
            )


def broken_report(told: Mapping[str, Any]) -> str:
    """What was broken, in a line: how many by reason, and the first of each."""
    reasons: dict[str, list[str]] = {}
    for name, reason in sorted(told["broken"].items()):
        reasons.setdefault(reason, []).append(name)
    more = {reason: ", ..." if len(names) > 1 else "" for reason, names in reasons.items()}
    parts = [f"{len(names)} {reason} ({names[0]}{more[reason]})" for reason, names in reasons.items()]
    return f"{len(told['broken'])} broken, replaced {told['replaced']} times: {', '.join(parts)}"
