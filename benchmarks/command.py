"""What benchmarks' command lines share.

Their end, `finish`: measure, then a table or JSON, or one line that says what is wrong. And `wait_for_turn`, with which
`accelerator.py` times one program alone that compiled beside others.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maskvlm_jax.runtime.errors import UserError

TURN = "MASKVLM_TURN"


def wait_for_turn() -> None:
    """Says that all is compiled and waits until nothing else runs, where the variable `TURN` names a file.

    FILE.ready is made, FILE.go is waited for.
    """
    if TURN in os.environ:
        turn = Path(os.environ[TURN])
        turn.with_suffix(".ready").touch()
        while not turn.with_suffix(".go").exists():
            time.sleep(0.05)


def finish(measure: Callable[[], dict[str, Any]], table: Callable[[dict[str, Any]], str], *, as_json: bool) -> int:
    """Prints what `measure` returns, as a table or one JSON object; returns the exit status."""
    try:
        result = measure()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result) if as_json else table(result))
    return 0
