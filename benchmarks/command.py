"""The end of every benchmark's command line: measure, then a table or JSON, or one line that says what is wrong."""

import json
import sys
from collections.abc import Callable
from typing import Any

from maskvlm_jax.errors import UserError


def finish(measure: Callable[[], dict[str, Any]], table: Callable[[dict[str, Any]], str], *, as_json: bool) -> int:
    """Prints what `measure` returns, as a table or one JSON object; returns the exit status."""
    try:
        result = measure()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result) if as_json else table(result))
    return 0
