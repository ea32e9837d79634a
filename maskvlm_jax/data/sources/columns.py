"""Which columns or features of a set hold its pictures and captions."""

from collections.abc import Mapping

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


_announced: set[tuple[str, str, str]] = set()


def announce(root: str, picture: str, caption: str) -> None:
    """Prints, once a set, which of its columns are read."""
    if (root, picture, caption) not in _announced:
        _announced.add((root, picture, caption))
        print(f"{root}: pictures are read from {picture!r}, captions from {caption!r}", flush=True)
