"""SIGTERM and Ctrl-C as a request: the step under way ends, the state is saved, the process exits."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import jax

from maskvlm_jax.runtime.errors import Stopped


class StopRequest:
    """Which signal asked to stop, 0 where none did."""

    def __init__(self):
        self.signal, self._saved_step = 0, None

    def handle(self, number: int, frame: Any) -> None:
        # One process of several does not leave the others waiting for it, unless it is asked twice.
        if self.signal or (self._saved_step is not None and jax.process_count() == 1):
            raise Stopped(number, self._saved_step, alone=True)
        self.signal = number
        print(f"\n{signal.Signals(number).name}: saving after this step; again = stop at once", flush=True)

    @contextlib.contextmanager
    def at_once(self, saved_step: int) -> Iterator[None]:
        """Where all is saved already a signal needs no step to end."""
        self._saved_step = saved_step
        if self.signal and jax.process_count() == 1:
            raise Stopped(self.signal, saved_step)
        yield
        self._saved_step = None


@contextlib.contextmanager
def stopping_signals() -> Iterator[StopRequest]:
    """SIGTERM and Ctrl-C ask to stop; the old handlers are put back at the end."""
    stop = StopRequest()
    old = {number: signal.signal(number, stop.handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
