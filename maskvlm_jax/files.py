"""Small files that are read and written whole."""

import json
import os
from pathlib import Path
from typing import Any

from maskvlm_jax.errors import UserError, writing


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: it does not exist or is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file in one step: a killed process leaves the old file or the new one."""
    temporary = path.with_suffix(".partial")
    with writing(path):
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
