"""Which columns or features of a set hold its pictures and captions."""

from collections.abc import Mapping, Sequence
from typing import Any

from maskvlm_jax.data.sources.written_text import usable_captions
from maskvlm_jax.runtime.errors import UserError, few


def choose_column(
    columns: Mapping[str, bool], key: str, usual: tuple[str, ...], *, flag: str, where: str, by_type: bool = False
) -> str:
    """The column `key`; where that is "", the first with a usual name.

    Args:
      columns: every column, and whether it is of a type that will do.
      flag: what sets `key`.
      by_type: take the only one of such a type, whatever its name. Not of texts: file names and labels are some too.

    Raises:
      UserError: no such column, or none that can be told from the others; the message lists them.
    """
    fitting = [name for name, fits in columns.items() if fits]
    only = fitting[0] if by_type and len(fitting) == 1 else ""
    chosen = key or next((name for name in usual if name in fitting), only)
    if not fitting:
        raise UserError(f"{where}: none of {few(columns)} is of a type for {flag}; take another set")
    if chosen not in fitting:
        wrong = f"{key!r} is not there or of another type" if key else f"no name tells which is the {flag}"
        there = f"there are {few(columns)}"
        raise UserError(f"{where}: {wrong}; set --config.data.{flag} to one of {few(fitting)} ({there})")
    return chosen


def choose_captions(
    columns: Mapping[str, bool], numbered: Sequence[str], key: str, usual: tuple[str, ...], *, where: str
) -> tuple[str, bool]:
    """The column of captions, and whether it is one that numbers classes, whose names are the captions then.

    Args:
      columns, key, usual: as of `choose_column`, of texts.
      numbered: columns that number classes; the first is taken where no key is given and no text has a usual name.

    Raises:
      UserError: as `choose_column`.
    """
    if numbered and not key and not any(columns.get(name) for name in usual):
        return numbered[0], True
    return choose_column(columns, key, usual, flag="caption_key", where=where), False


def read_by_fields(data: Mapping[str, Any]) -> tuple[str, ...]:
    """What `config.data.fields` read of an example beside its picture and captions: keys, without what is behind a dot.

    A set of columns holds more of them than are of use, so that these alone are read.
    """
    keys = (one.get("key") or label for label, one in data["fields"].items())
    return tuple(dict.fromkeys(key.partition(".")[0] for key in keys))


_announced: set[tuple[str, str, str]] = set()


def announce(root: str, picture: str, caption: str) -> None:
    """Prints, once a set, which of its columns are read."""
    if (root, picture, caption) not in _announced:
        _announced.add((root, picture, caption))
        print(f"{root}: pictures are read from {picture!r}, captions from {caption!r}", flush=True)


def class_captions(number: Any, classes: Sequence[str]) -> list[str]:
    """The name of a class as the only caption of a picture; its number where it has no name, none where it has none."""
    if not isinstance(number, int) or isinstance(number, bool):
        return []
    return usable_captions([classes[number] if 0 <= number < len(classes) else str(number)])
