"""Names of shards: globs, and lists and ranges in braces as webdataset's users write them."""

import glob
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from maskvlm_jax.runtime.errors import UserError

_MAX_RANGE = 1_000_000


def pattern_of(data: Mapping[str, Any], split: str) -> str:
    """The pattern of a split's shards, `data.splits[split]`.

    Raises:
        UserError: there is none.
    """
    if split not in data["splits"]:
        there = ", ".join(sorted(data["splits"])) or "none"
        wanted = {**data["splits"], split: "PATTERN"}
        raise UserError(
            f"data.splits has no shards of split {split!r}, only {there}; give their pattern, such as "
            f'--config.data.splits="{wanted}"'
        )
    return data["splits"][split]


def find_shards(root: str, pattern: str, ending: str) -> list[str]:
    """Names of the shards that a pattern means, sorted.

    Args:
      root: folder that the names are relative to.
      pattern: glob ("train/*.tar", ** for any folders), with lists and ranges in braces ("{00000..00099}.tar"); or the
        name of a shard, whatever it holds ("train [1].tar").
      ending: of the files to take.

    Raises:
      UserError: no such folder, no such shard, or one of those that are named one by one is missing.
    """
    folder = Path(root).expanduser()
    if not root or not folder.is_dir():
        raise UserError(f"data root {root!r} is not a folder; set --config.data.root=/path/to/the/data")
    if not pattern or pattern.startswith("/"):
        raise UserError(f"shards {pattern!r}: give a pattern relative to the data root, such as '*{ending}'")
    if pattern.endswith(ending) and (folder / pattern).is_file():
        return [posixpath.normpath(pattern)]
    found: set[str] = set()
    missing = []
    for name in expand_braces(pattern):
        names = glob.glob(name, root_dir=folder, recursive=True)
        kept = (name for name in names if name.endswith(ending) and (folder / name).is_file())
        found.update(map(posixpath.normpath, kept))
        if not names and not re.search(r"[*?[]", name):
            missing.append(name)
    if missing and found:
        raise UserError(
            f"{folder / pattern}: {len(missing)} of the shards are missing (first: {missing[0]}); "
            f"bring them, or use a pattern such as '*{ending}'"
        )
    if not found:
        raise UserError(f"{folder / pattern}: no file that ends in {ending} is there; check the root and the pattern")
    return sorted(found)


def expand_braces(pattern: str) -> Iterator[str]:
    """Yields the pattern with each choice of its braces, {a,b} or {007..012}, as shells do."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if not braces:
        yield pattern
        return
    choices: Any = braces[1].split(",")
    if limits := re.fullmatch(r"(\d+)\.\.(\d+)", braces[1]):
        first, last = int(limits[1]), int(limits[2])
        if last - first >= _MAX_RANGE:
            raise UserError(f"shards {pattern!r}: {braces[0]} are more than {_MAX_RANGE} names; check the range")
        choices = (f"{number:0{len(limits[1])}d}" for number in range(first, last + 1))
    for choice in choices:
        yield from expand_braces(pattern[: braces.start()] + choice + pattern[braces.end() :])
