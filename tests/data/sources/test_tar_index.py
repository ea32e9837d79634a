"""The index beside a tar shard: when it is made, and when it is not believed."""

import os
import pickle
from pathlib import Path

import pytest

from maskvlm_jax.data.sources import tar_index
from tests.data.sources.tars import contents, open_shards, sample, write_shards, write_tar


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "data")


def test_the_index_is_made_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_shards(root)
    monkeypatch.setattr(tar_index, "_index_tar", None)
    again = open_shards(root)
    assert contents(again) == contents(first) and again[4] == first[4]
    assert again.fingerprint == first.fingerprint and again.report == first.report
    assert sorted(path.name for path in root.iterdir()) == [
        *["00000.tar", "00000.tar.index", "00001.tar", "00001.tar.index"]
    ]


def test_the_index_is_made_anew_when_the_shard_or_the_caption_key_changes(root: Path) -> None:
    first = open_shards(root)
    write_tar(root / "00000.tar", *sample("new", "a new caption"))
    assert list(contents(open_shards(root))) == ["00000/new", "00001/100", "00001/101"]
    status = (root / "00001.tar").stat()
    changed = (root / "00001.tar").read_bytes().replace(b"a cat", b"a cow")
    (root / "00001.tar").write_bytes(changed)
    os.utime(root / "00001.tar", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert contents(open_shards(root))["00001/100"] == ["a cow"]
    assert contents(open_shards(root, caption_key="text")) == {"00001/101": ["one", "two"]}
    assert len(open_shards(root)) == 3
    assert first.fingerprint != open_shards(root).fingerprint


def test_a_damaged_index_is_made_anew(root: Path) -> None:
    expected = contents(open_shards(root))
    index = root / "00000.tar.index"
    whole = index.read_bytes()
    for damaged in (b"", whole[:50], whole[:-1], whole[:-1] + b"?", b"maskvlm_jax tar index 1 00000000\n"):
        index.write_bytes(damaged)
        assert contents(open_shards(root)) == expected
    # An empty file is not known to be ours.
    index.unlink()
    open_shards(root)
    assert index.read_bytes() == whole


def test_an_index_that_points_out_of_the_shard_is_not_believed(root: Path) -> None:
    source = open_shards(root, shards="00000.tar")
    expected, shard = contents(source), source._shards[0]
    for field, value in (("image_size", 1 << 60), ("image", -1), ("caption", 1 << 62), ("key_end", 99)):
        samples = shard.samples.copy()
        samples[field][1] = value
        tar_index._save_index(root / "00000.tar.index", shard._replace(samples=samples), "")
        assert contents(open_shards(root, shards="00000.tar")) == expected


def test_somebody_elses_index_file_is_left_alone(root: Path) -> None:
    (root / "00000.tar.index").write_text("mine")
    assert len(open_shards(root)) == 5
    assert (root / "00000.tar.index").read_text() == "mine"


def test_without_leave_to_write_the_index_is_in_memory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "write_bytes", refuse)  # for the superuser no folder is read-only
    source = open_shards(root)
    assert len(source) == 5 and len(list(root.iterdir())) == 2
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)
