"""Parts that a config names: one file each, in the package's folder for their kind or anywhere else.

A name is that of a module of the folder, `matching`, the path of a file, `my_losses/mean_colour.py`, or with dots that
of any module that can be imported, `my_package.losses`. So a new part is a new file and a line of config.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

from maskvlm_jax.runtime.errors import UserError

_BASE = "base"  # the file of a folder that says what its parts are


def load(package: str, name: str, attribute: str, what: str) -> Any:
    """The attribute of the part that a config names.

    Args:
        package: the folder of such parts, "maskvlm_jax.objectives".
        attribute: what a file has that is such a part: a class or a function.
        what: such a part, for messages: "objective".

    Raises:
        UserError: there is no such part; the message names those there are.
    """
    if name.endswith(".py"):
        module = _by_path(Path(name), what)
    else:
        module = _by_name(name if "." in name else f"{package}.{name}")
    if hasattr(module, attribute) and name != _BASE:
        return getattr(module, attribute)
    if name.endswith(".py"):
        raise UserError(f"{name} is no {what}: it has no {attribute}")
    raise UserError(f"there is no {what} {name!r}; choose among {', '.join(names(package, attribute))}, or a .py file")


def names(package: str, attribute: str) -> list[str]:
    """The parts in the package's folder; no file is imported for it."""
    folder = Path(importlib.import_module(package).__file__).parent
    starts = tuple(f"{word} {attribute}{end}" for word, end in (("class", "("), ("class", ":"), ("def", "(")))
    files = sorted(folder.glob("*.py"))
    return [
        file.stem
        for file in files
        if file.stem != _BASE and any(line.startswith(starts) for line in file.read_text(encoding="utf-8").splitlines())
    ]


def _by_name(path: str) -> Any:
    if not all(part.isidentifier() for part in path.split(".")):
        return None
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if not f"{path}.".startswith(f"{error.name}."):  # something that the file itself imports
            raise
    return None


def _by_path(path: Path, what: str) -> Any:
    """The module of a file. Its folder joins Python's path, so that worker processes find it too."""
    path = path.expanduser().resolve()
    if not path.is_file():
        raise UserError(f"there is no file {path} for the {what}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = importlib.import_module(path.stem)
    if Path(getattr(module, "__file__", None) or "").resolve() != path:
        raise UserError(f"{path} cannot be imported: another module is named {path.stem}; rename the file")
    return module
