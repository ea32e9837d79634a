"""Prepares a set: looks at every example once, and writes those that are sound as shards for the source `array_record`.

    python -m maskvlm_jax.prepare --config=configs/prepare.py:data=coco --config.data.root=FOLDER --config.out=OUT

Two phases, over processes: every picture is decoded, measured and hashed, in pieces that are kept in OUT/SPLIT/work;
then what is left is written, shard by shard, and the manifest last. Stopped at any point, the same command goes on
where it was. The shards are the same bytes however many processes made them and however often they were stopped.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from maskvlm_jax.data.sources import records
from maskvlm_jax.data.sources.base import Source
from maskvlm_jax.data.sources.opening import existing_splits, open_source
from maskvlm_jax.prepare import pieces, reports, survey
from maskvlm_jax.runtime import buckets, files
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.runtime.stopping import stopping_signals
from maskvlm_jax.settings import ranges
from maskvlm_jax.settings.plain_values import flatten


class Split(NamedTuple):
    """A split to prepare.

    Attributes:
        against: the set whose pictures must not be in it.
        examples: how many are looked at.
        expected: how many examples there should be.
        asked: what the shards' bytes depend on, as the manifest holds it.
    """

    name: str
    folder: Path
    source: Source
    against: Source | None
    examples: int
    expected: int
    asked: dict[str, Any]


def run(config: ConfigDict, workdir: Path) -> None:
    """`task = prepare`: prepares what is not prepared yet, and reports; writes into `config.out`, not the workdir.

    Raises:
        UserError: a value that does not go, a source that cannot be opened, or a folder that holds something else.
        Stopped: a signal stopped it; what is done is kept.
    """
    _check(config)
    if config.verify:
        reports.verify(_out(config), config.splits)
        return
    splits = open_splits(config)
    finished = [_is_finished(split) for split in splits]  # of all, before any is worked on
    todo = [split for split, done in zip(splits, finished, strict=True) if not done]
    sources = [source for split in todo for source in (split.source, split.against) if source]
    with stopping_signals() as stop, pieces.Crew(sources, workers=config.workers, stop=stop) as crew:
        for split in splits:
            if split in todo:
                _prepare(split, config, crew)
            shutil.rmtree(split.folder / "work", ignore_errors=True)
            report = reports.report(records.read_manifest(split.folder))
            print(f"{split.folder} is finished{'' if split in todo else ' already'}\n{report}", flush=True)


def _check(config: ConfigDict) -> None:
    """Values that cannot be meant."""
    ranges.check(flatten(config.to_dict()))
    if not config.out:
        raise UserError("say where the shards go: --config.out=FOLDER")
    if config.overlap not in ("report", "drop"):
        raise UserError(f"overlap is {config.overlap!r}; choose among report, drop")
    if config.overlap == "drop" and not config.against:
        raise UserError("overlap=drop needs a set to compare with; give --config=configs/prepare.py:...,against=NAME")
    if config.expected and len(config.expected) != len(config.splits):
        raise UserError(f"expected has {len(config.expected)} counts for {len(config.splits)} splits; name the splits")
    limits = {"examples_per_shard": (1, 1_000_000), "quality": (1, 100), "against_distance": (0, survey.HASH_BITS)}
    limits |= {"resize": (0, 10_000), "min_size": (0, 10_000), "workers": (0, 1_024)}
    for name, (low, high) in limits.items():
        if not low <= config[name] <= high:
            raise UserError(f"{name} is {config[name]}; give {low} to {high}")


def open_splits(config: ConfigDict) -> list[Split]:
    """Opens the sources of all splits, and that of `config.against`."""
    options = {name: config[name] for name in ("examples_per_shard", "min_size", "drop_duplicates", "resize")}
    options |= {"limit": config.data.limit, "clean": config.data.clean}
    options |= {"quality": config.quality} if config.resize else {}
    other = open_source(config.against.to_dict(), config.against.split, config.image_size) if config.against else None
    splits = []
    for number, name in enumerate(config.splits or existing_splits(config.data.to_dict())):
        source = open_source(config.data.to_dict(), name, config.image_size)
        examples = min(len(source), config.data.limit or len(source))
        expected = config.expected[number] if config.expected else examples + survey.left_out(source.report)
        against = None if other is None or other.fingerprint == source.fingerprint else other  # all is like itself
        asked = {"source": config.data.source, "fingerprint": source.fingerprint, **options}
        if against:
            asked["against"] = f"{config.against_name} {config.against.split}"
            asked["against_fingerprint"] = against.fingerprint
            asked |= {"against_distance": config.against_distance, "overlap": config.overlap}
        splits.append(Split(name, _out(config) / name, source, against, examples, expected, asked))
    return splits


def _out(config: ConfigDict) -> Path:
    return buckets.local_folder(config.out, "shards that are written")


def _is_finished(split: Split) -> bool:
    """True where the split is prepared, False where it is not or in part.

    Raises:
        UserError: its folder holds another preparation, or something else.
    """
    folder, asked = split.folder, split.folder / "work" / "asked.json"
    finished = (folder / records.MANIFEST).exists()
    if finished or asked.exists():
        there = records.read_manifest(folder)["asked"] if finished else json.loads(asked.read_text(encoding="utf-8"))
        differing = sorted(key for key in there.keys() | split.asked if there.get(key) != split.asked.get(key))
        if differing:
            other = "from other examples or captions"
            if "fingerprint" not in differing:
                other = f"with other values of {', '.join(differing)}"
            raise UserError(
                f"{folder} was prepared{'' if finished else ' in part'} {other}; use another --config.out, or remove it"
            )
        if finished:
            _check_files(folder)
    elif folder.exists() and {path.name for path in folder.iterdir()} - {"work"}:
        raise UserError(f"{folder} holds other files; use another --config.out")
    return finished


def _check_files(folder: Path) -> None:
    """A finished split has all its files, of their sizes; their bytes are compared by `config.verify`."""
    for file in records.files(records.read_manifest(folder)):
        path = folder / file.name
        if not path.is_file() or path.stat().st_size != file.bytes:
            wrong = "is not of the size that was written" if path.is_file() else "is missing"
            raise UserError(f"{path} {wrong}; copy it again, or remove {folder} to have all of it written anew")


def _prepare(split: Split, config: ConfigDict, crew: pieces.Crew) -> None:
    """Scans, decides, writes; the manifest comes last, and makes the split finished."""
    work = split.folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    files.write_json(work / "asked.json", split.asked)
    scans = pieces.Scan.cut(split.source, split.examples, work / "scan", min_size=config.min_size)
    crew.run(scans, f"scan {split.name}")
    table, other = survey.Table.read(scan.path for scan in scans), None
    if split.against:
        others = pieces.Scan.cut(split.against, len(split.against), work / "against", min_size=0)
        crew.run(others, f"scan {split.asked['against']}")
        other = survey.Table.read(scan.path for scan in others)
    verdict = _judge(split, table, other, config)
    _write_lines(split.folder / "dropped.jsonl", [row for _, row in sorted(verdict.dropped.items())])
    if split.against:
        _write_lines(split.folder / "overlap.jsonl", verdict.overlap)
    kept = np.array([i not in verdict.dropped for i in range(split.examples)])
    if not kept.any():
        raise UserError(f"no example of {split.name} is left; see {split.folder / 'dropped.jsonl'}")
    writes = pieces.Write.cut(
        split.source,
        np.flatnonzero(kept),
        table.sha256[kept],
        split.folder,
        size=config.examples_per_shard,
        resize=config.resize,
        quality=config.quality,
    )
    crew.run(writes, f"write {split.name}")
    captions = records.write_file(
        split.folder / records.CAPTIONS, _caption_records(scans, kept), temporary=pieces.temporary(work / "captions")
    )
    manifest = _manifest(split, config, table, verdict, kept)
    manifest |= {
        "shards": [json.loads(write.entry.read_text(encoding="utf-8")) for write in writes],
        "captions_file": captions._asdict(),
    }
    files.write_json(split.folder / records.MANIFEST, manifest)


class _Verdict(NamedTuple):
    """Which examples are left out, {number: line of dropped.jsonl}; how many are duplicates; lines of overlap.jsonl."""

    dropped: dict[int, dict[str, str]]
    duplicates: int
    overlap: list[dict[str, Any]]


def _judge(split: Split, table: survey.Table, other: survey.Table | None, config: ConfigDict) -> _Verdict:
    """Decides what is left out; `other` is of the pictures that must not be in the split."""
    dropped, overlap = {}, []

    def drop(index: int, reason: str, detail: str) -> None:
        dropped[index] = {"id": split.source.id(index), "reason": reason, "detail": detail}

    for index, reason in enumerate(table.reason):
        if reason:
            drop(index, reason, table.detail.get(index, ""))
    sound = np.array([index for index, reason in enumerate(table.reason) if not reason], np.int64)
    first = sound[survey.first_of_equal(table.sha256[sound])]
    repeated = first != sound
    if config.drop_duplicates:
        for index, same in zip(sound[repeated].tolist(), first[repeated].tolist(), strict=True):
            drop(index, "duplicate", f"the same bytes as {split.source.id(same)}")
        sound = sound[~repeated]
    decodable = np.flatnonzero(other.short_side) if other else np.empty(0, np.int64)
    if len(decodable):
        bits, nearest = survey.nearest(table.phash[sound], other.phash[decodable])
        near = bits <= config.against_distance
        columns = (sound[near], decodable[nearest[near]], bits[near])
        for index, same, distance in zip(*map(np.ndarray.tolist, columns), strict=True):
            like = split.against.id(same)
            overlap.append({"id": split.source.id(index), "like": like, "bits": distance})
            if config.overlap == "drop":
                drop(index, "overlap", f"{distance} bits from {like}")
    return _Verdict(dropped, int(repeated.sum()), overlap)


def _caption_records(scans: Sequence[pieces.Scan], kept: np.ndarray) -> Iterator[bytes]:
    for scan in scans:
        for keep, facts in zip(kept[scan.first : scan.last], survey.load(scan.path), strict=True):
            if keep:
                yield records.encode({"id": facts.id, "captions": facts.captions})


def _manifest(
    split: Split, config: ConfigDict, table: survey.Table, verdict: _Verdict, kept: np.ndarray
) -> dict[str, Any]:
    """The manifest but for its files."""
    reasons = [row["reason"] for row in verdict.dropped.values()]
    words, overlap = table.words[np.repeat(kept, table.captions)], None
    if split.against:
        overlap = {
            "with": split.asked["against"],
            "at_most_bits": config.against_distance,
            "pictures": len(verdict.overlap),
            "share": len(verdict.overlap) / split.examples,
            "dropped": config.overlap == "drop",
        }
    return {
        "format": records.FORMAT,
        "version": records.VERSION,
        "name": config.name,
        "split": split.name,
        "asked": split.asked,
        "expected": split.expected,
        "written": int(kept.sum()),
        "captions": len(words),
        "dropped": {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
        "duplicates": verdict.duplicates,
        "overlap": overlap,
        "short_side": survey.spread(table.short_side[kept], survey.SIDE_EDGES),  # before any resizing
        "caption_words": survey.spread(words, survey.WORD_EDGES),
        "source_report": split.source.report,
    }


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    files.write_bytes(path, lines.encode(errors="backslashreplace"))  # of a name that is not UTF-8 JSON's own escape
