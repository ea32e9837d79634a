"""The answer to a query, for people and for programs."""

import dataclasses
from typing import Any

from maskvlm_jax.search.searching import Found


def plain(found: Found) -> dict[str, Any]:
    """The answer as JSON has it."""
    return dataclasses.asdict(found)


def table(found: Found) -> str:
    """The answer in lines: row, cosine, probability where there is one, and name."""
    if not found.hits:
        return "the index has no pictures"
    matched = any(hit.probability is not None for hit in found.hits)
    lines = []
    if matched and not found.above:
        lines.append(f"nothing above {found.cutoff:g}; the nearest are:")
    width = max(len(str(hit.row)) for hit in found.hits)
    lines.append(f"{'row':>{max(width, 3)}}  cosine{'  match' * matched}  name")
    for hit in found.hits:
        probability = f"  {hit.probability:5.3f}" if matched else ""
        copies = f" (and {len(hit.copies)} more of the same)" * bool(hit.copies)
        lines.append(f"{hit.row:>{max(width, 3)}}  {hit.cosine:6.3f}{probability}  {hit.name}{copies}")
    return "\n".join(lines)
