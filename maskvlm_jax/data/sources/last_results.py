"""A small cache that several threads ask at once."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any


class LastResults:
    """The last few results, each made once however many threads ask for it; none of them is pickled."""

    def __init__(self, size: int):
        self._size, self._lock = size, threading.Lock()
        self._results: OrderedDict[Hashable, Future] = OrderedDict()

    def __reduce__(self):
        return LastResults, (self._size,)

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        with self._lock:
            result = self._results.get(key)
            is_new = result is None
            if is_new:
                result = self._results[key] = Future()
                if len(self._results) > self._size:
                    self._results.popitem(last=False)
            self._results.move_to_end(key)
        if is_new:
            try:
                result.set_result(make())
            except BaseException as error:
                result.set_exception(error)
                raise
        return result.result()
