"""Small files that are read and written whole."""

import json
import os
from pathlib import Path
from typing import Any

from maskvlm_jax.runtime import buckets
from maskvlm_jax.runtime.errors import UserError, writing


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: it does not exist or is damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it from a copy, or name another folder") from error


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file in one step: a killed process leaves the old file or the new one."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file in UTF-8, in one step as above."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file in one step as above."""
    with writing(path):
        if buckets.is_remote(path):  # an object is not there before it is whole
            path.write_bytes(content)
            return
        temporary = path.with_suffix(".partial")
        temporary.write_bytes(content)
        os.replace(temporary, path)
