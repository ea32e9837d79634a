"""What stores need whose engine does not know which rows have a picture."""

from collections.abc import Callable

import numpy as np


def living(ask: Callable[[int], np.ndarray], k: int, live: np.ndarray, most: int) -> np.ndarray:
    """At least k live rows of an engine that does not know which are, or all that it finds.

    Args:
        ask: gives the nearest n rows, the nearest first; most: the largest n.
    """
    asked = min(2 * k, most)
    while True:
        rows = ask(asked)
        found = rows[rows < len(live)]
        found = found[live[found]]
        if len(found) >= k or asked >= most or len(rows) < asked:
            return found
        asked = min(4 * asked, most)
