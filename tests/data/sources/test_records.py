"""Prepared shards as a source: what was written comes back, and what is damaged is told."""

import hashlib
import json
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from maskvlm_jax.data.sources import records
from maskvlm_jax.data.sources.array_record import ArrayRecords
from maskvlm_jax.runtime.errors import UserError


def examples(count: int) -> list[dict]:
    return [
        {"id": f"pictures/{i}.jpg", "image": bytes([i]) * (100 + i), "captions": [f"caption {i}", "Größe 大"]}
        for i in range(count)
    ]


def write_split(folder: Path, shards: list[list[dict]], **manifest) -> None:
    folder.mkdir(parents=True)
    told = [
        records.write_file(folder / f"shard-{i}", map(records.encode, part), temporary=folder / "x")
        for i, part in enumerate(shards)
    ]
    texts = ({key: one[key] for key in ("id", "captions")} for part in shards for one in part)
    captions = records.write_file(folder / records.CAPTIONS, map(records.encode, texts), temporary=folder / "x")
    count = sum(map(len, shards))
    content = {"format": records.FORMAT, "version": records.VERSION, "expected": count, "written": count, "dropped": {}}
    content |= {"shards": [one._asdict() for one in told], "captions_file": captions._asdict()}
    (folder / records.MANIFEST).write_text(json.dumps(content | manifest))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten examples of split `train` in shards of 4, 4 and 2."""
    ten = examples(10)
    write_split(tmp_path / "train", [ten[:4], ten[4:8], ten[8:]])
    return tmp_path


def test_what_was_written_comes_back(root):
    source, written = ArrayRecords(root=str(root), split="train"), examples(10)
    assert len(source) == 10
    assert [source[i] for i in range(10)] == written
    assert [source.id(i) for i in range(10)] == [one["id"] for one in written]
    assert [source.captions(i) for i in range(10)] == [one["captions"] for one in written]
    assert source.report == {}
    assert source[-1] == written[-1]
    with pytest.raises(IndexError):
        source[10]
    with pytest.raises(IndexError):
        source.captions(10)


def test_what_else_is_known_of_an_example_comes_back():
    more = {"label": np.int64(3), "box": np.array([1.5, 2.0]), "answers": ["red", "blue"], "scores": {"a": 1, 2: None}}
    example = examples(1)[0] | more
    expected = example | {"label": 3, "box": [1.5, 2.0]}
    assert records.decode(records.encode(example)) == expected
    with pytest.raises(UserError, match=r"pictures/0.jpg holds what a record cannot \(a set\)"):
        records.encode(example | {"tags": {"a"}})


def test_a_source_travels_to_other_processes_with_no_file_open(root):
    source = ArrayRecords(root=str(root), split="train")
    before = pickle.dumps(source)
    assert source[5] == examples(10)[5] and source.captions(9)
    assert len(pickle.dumps(source)) == len(before), "nothing that reading opened is in it"
    assert pickle.loads(before)[5] == examples(10)[5]


def test_several_threads_read_one_source(root):
    source, written, wrong = ArrayRecords(root=str(root), split="train"), examples(10), []

    def read(start: int) -> None:
        wrong.extend(i for i in range(start, start + 100) if source[i % 10] != written[i % 10])

    threads = [threading.Thread(target=read, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_fingerprint_is_of_the_shards_and_not_of_their_place(root, tmp_path_factory):
    source = ArrayRecords(root=str(root), split="train")
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(root, elsewhere)
    assert ArrayRecords(root=str(elsewhere), split="train").fingerprint == source.fingerprint
    shards = (hashlib.sha256((root / "train" / f"shard-{i}").read_bytes()).hexdigest() for i in range(3))
    assert source.fingerprint == hashlib.sha256("".join(f"{one}\n" for one in shards).encode()).hexdigest()
    write_split(root / "other", [examples(9)])
    assert ArrayRecords(root=str(root), split="other").fingerprint != source.fingerprint


def test_equal_examples_make_equal_files(root):
    write_split(root / "again", [examples(10)[:4]])
    assert (root / "again" / "shard-0").read_bytes() == (root / "train" / "shard-0").read_bytes()
    assert sorted(path.name for path in (root / "again").iterdir()) == [
        "captions.array_record",
        "manifest.json",
        "shard-0",
    ]


def test_what_was_dropped_and_what_never_came_is_reported(tmp_path):
    write_split(tmp_path / "train", [examples(4)], expected=10, dropped={"no caption": 1, "duplicate": 2})
    assert ArrayRecords(root=str(tmp_path), split="train").report == {
        "missing_pictures": 3,
        "pictures_dropped_as_no_caption": 1,
        "pictures_dropped_as_duplicate": 2,
    }


def damage(path: Path, what: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(what)] ^= 255
    path.write_bytes(content)


def test_a_damaged_record_is_named_and_the_others_are_read(root):
    damage(root / "train" / "shard-1", b"caption 6")
    damage(root / "train" / records.CAPTIONS, b"caption 2")
    source = ArrayRecords(root=str(root), split="train")
    with pytest.raises(UserError, match=r"record 2 of .*train/shard-1 is damaged .*; copy the file again") as caught:
        source[6]
    assert "\n" not in str(caught.value)
    assert source[5] == examples(10)[5] and source[7] == examples(10)[7]
    with pytest.raises(UserError, match=r"record 2 of .*captions.array_record is damaged"):
        source.captions(2)
    assert source.captions(3) == examples(10)[3]["captions"]


@pytest.mark.parametrize("record", [b"", b"\x01", b"\x81\xa2id\x01", records.encode({"id": "a", "captions": "b"})])
def test_bytes_that_are_no_record(record):
    with pytest.raises(ValueError, match="no record of an example"):
        records.decode(record)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def set_manifest(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "shard-1").unlink(), r"shard-1 is missing .*; copy it again"),
        (lambda f: shorten(f / "shard-2"), r"shard-2 has \d+ bytes, its manifest says \d+; copy it again"),
        (lambda f: shorten(f / records.CAPTIONS), r"captions.array_record has \d+ bytes"),
        (lambda f: (f / "manifest.json").write_text("{"), r"manifest.json cannot be read: .*; prepare the split again"),
        (lambda f: (f / "manifest.json").write_text("{}"), r"manifest.json is no manifest of prepared shards"),
        (lambda f: set_manifest(f / "manifest.json", version=2), r"is of version 2 .*, this program reads 1"),
        (lambda f: (f / "manifest.json").unlink(), r"manifest.json does not exist; was the set prepared"),
        (lambda f: ((f / "manifest.json").unlink(), (f / "work").mkdir()), r"is not finished; the command that"),
    ],
)
def test_what_opening_refuses(root, spoil, message):
    spoil(root / "train")
    with pytest.raises(UserError, match=message) as caught:
        ArrayRecords(root=str(root), split="train")
    assert "\n" not in str(caught.value)


def test_wrong_roots_and_splits(root):
    with pytest.raises(UserError, match=r"no split 'val' in .*; choose among train"):
        ArrayRecords(root=str(root), split="val")
    for wrong in ("", str(root / "gone")):
        with pytest.raises(UserError, match="is not a folder; set"):
            ArrayRecords(root=wrong, split="train")


def test_a_file_that_cannot_be_written_is_an_error_and_leaves_none(tmp_path):
    with pytest.raises(OSError, match="cannot be written"):
        records.write_file(tmp_path / "a", [b"x"], temporary=tmp_path / "no folder" / "a")
    assert not (tmp_path / "a").exists()
