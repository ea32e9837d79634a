"""What a prepared split holds, in lines for people, and whether its files are as they were written."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from maskvlm_jax.data.sources import records
from maskvlm_jax.prepare import survey
from maskvlm_jax.runtime.errors import UserError


def report(manifest: Mapping[str, Any]) -> str:
    """A manifest in lines for people."""
    share, shards = manifest["written"] / max(1, manifest["expected"]), manifest["shards"]
    size = sum(shard["bytes"] for shard in shards)
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in manifest["dropped"].items())
    lines = [
        f"  {manifest['name']} {manifest['split']}: {manifest['written']:,} of {manifest['expected']:,} expected "
        f"examples ({100 * share:.2f} %)",
        f"  {manifest['captions']:,} captions, {len(shards)} shard{'s' * (len(shards) > 1)}, {size / 1e6:,.1f} MB",
        f"  left out: {left_out + ' (see dropped.jsonl)' if left_out else 'none'}",
    ]
    if manifest["source_report"]:
        counts = ", ".join(
            f"{count:,} {reason.replace('_', ' ')}" for reason, count in manifest["source_report"].items()
        )
        lines.append(f"  not in the source: {counts}")
    if overlap := manifest["overlap"]:
        lines.append(
            f"  like a picture of {overlap['with']}: {overlap['pictures']:,} ({100 * overlap['share']:.2f} %), at most "
            f"{overlap['at_most_bits']} of {survey.HASH_BITS} bits apart, "
            f"{'left out' if overlap['dropped'] else 'kept'} (see overlap.jsonl)"
        )
    lines += survey.bars("  short side in pixels", manifest["short_side"])
    lines += survey.bars("  words a caption", manifest["caption_words"])
    return "\n".join(lines)


def verify(out: Path, splits: Iterable[str]) -> None:
    """Reads all files of prepared splits and compares them with their manifests.

    Raises:
        UserError: naming the files that differ.
    """
    folders = [out / name for name in splits] or sorted(path.parent for path in out.glob(f"*/{records.MANIFEST}"))
    if not folders:
        raise UserError(f"there are no prepared shards in {out}; set --config.out to their folder")
    damaged = [path for folder in folders for path in records.damaged(folder)]
    if damaged:
        raise UserError(
            f"{len(damaged)} files are not as they were written: {', '.join(map(str, damaged[:5]))}"
            f"{', ...' if len(damaged) > 5 else ''}; copy them again, or prepare the split again into another folder"
        )
    print(f"all files of {', '.join(folder.name for folder in folders)} in {out} are as they were written")
