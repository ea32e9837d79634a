"""Classes by their names: prompts, and the vector of a class that several of them make (CLIP, arXiv 2103.00020, 3.1.4).

A template has {} once, in the place of the name: "a photo of a {}". Files of templates have one a line; empty lines and
those that begin with # are skipped.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskvlm_jax.runtime.errors import UserError

_SHIPPED = Path(__file__).parent / "templates"


def read_templates(name: str) -> tuple[str, ...]:
    """The templates of a file: one of the folder `templates`, by its name, or any other, by its path.

    Raises:
        UserError: there is no such file, or a line of it is no template.
    """
    shipped = sorted(path.stem for path in _SHIPPED.glob("*.txt"))
    path = _SHIPPED / f"{name}.txt" if name in shipped else Path(name).expanduser()
    lines = _lines(path, f"templates; choose among {', '.join(shipped)}, or give the path of a file")
    if wrong := [(row, line) for row, line in lines if not is_template(line)]:
        raise UserError(
            f"{path.name} row {wrong[0][0]}: {wrong[0][1]!r} must have {{}} once, for the name of the class"
        )
    return tuple(line for _, line in lines)


def read_names(path: str) -> tuple[str, ...]:
    """Names of classes, one a line, in the order of their numbers.

    Raises:
        UserError: there is no such file, or no name in it.
    """
    return tuple(line for _, line in _lines(Path(path).expanduser(), "names of classes; check the path"))


def _lines(path: Path, what: str) -> list[tuple[int, str]]:
    """(row, text) of the lines that say something."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{path}: the file cannot be read ({reason}): it should have {what}") from error
    lines = [(row, " ".join(line.split())) for row, line in enumerate(text.split("\n"), start=1)]
    lines = [(row, line) for row, line in lines if line and not line.startswith("#")]
    if not lines:
        raise UserError(f"{path}: there is no line in it: it should have {what}")
    return lines


def is_template(text: str) -> bool:
    """Whether it has {} once."""
    return text.count("{}") == 1


def prompts(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every name in every template: all of the first name, then all of the second."""
    return [template.replace("{}", name) for name in names for template in templates]


def class_vectors(text_TE: np.ndarray, classes: int) -> np.ndarray:
    """class_CE of unit length: the mean of the unit vectors of a class's prompts, in the order of `prompts`."""
    class_CE = text_TE.reshape(classes, -1, text_TE.shape[-1]).mean(1)
    return class_CE / np.linalg.norm(class_CE, axis=1, keepdims=True)
