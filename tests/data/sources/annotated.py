"""Small sets of annotated pictures as files, and what a source reads of them."""

import json
from pathlib import Path


def data_of(source: str, root: Path, splits: dict[str, str], **changes) -> dict:
    data = {"source": source, "root": str(root), "images": "images", "splits": splits, "split": "train"}
    return data | {"mixture": {}, "clean": "none", "max_missing": 0.5, **changes}


def write_pictures(root: Path, *names: str) -> None:
    for name in names:
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def examples(source) -> list[dict]:
    found = [source[i] for i in range(len(source))]
    assert [(one["id"], one["captions"]) for one in found] == [
        (source.id(i), source.captions(i)) for i in range(len(source))
    ]
    return found
