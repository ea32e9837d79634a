"""The `webdataset` source: what is read from tar shards, what is left out and counted, and when the index is made."""

import os
import pickle
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from maskvlm_jax.data.sources import tar_index, webdataset
from maskvlm_jax.runtime.errors import UserError
from tests.data.sources.tars import contents, jpeg, open_shards, sample, write_shards, write_tar


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "data")


def test_samples_of_all_shards_in_order(root: Path) -> None:
    source = open_shards(root)
    assert contents(source) == {
        "00000/000": ["a red dog"],
        "00000/001": ["zwei Bäume"],
        "00000/002": ["a dog"],
        "00001/100": ["a cat"],
        "00001/101": ["x"],
    }
    assert source[3] == {"id": "00001/100", "image": jpeg("red"), "captions": ["a cat"]}
    assert source.report == {}
    for index in (5, -1):
        with pytest.raises(IndexError):
            source[index]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.tar", ["00000", "00001"]),
        ("00001.tar", ["00001"]),
        ("{00000..00001}.tar", ["00000", "00001"]),
        ("0000{1,0}.tar", ["00000", "00001"]),
        ("**/*.tar", ["00000", "00001", "more/7"]),
        ("./more/../*.tar", ["00000", "00001"]),
        ("{more/{7..7},0000?}.tar", ["00000", "00001", "more/7"]),
    ],
)
def test_patterns_of_shards(root: Path, pattern: str, names: list[str]) -> None:
    write_tar(root / "more" / "7.tar", *sample("a"))
    (root / "folder.tar").mkdir()
    assert list(dict.fromkeys(name.rpartition("/")[0] for name in contents(open_shards(root, shards=pattern)))) == names


def test_caption_key_chooses_text_or_a_field_of_the_json(root: Path) -> None:
    write_tar(root / "a.tar", ("k.png", b"k"), ("k.json", b'{"caption": "from json", "alt": [" one", "two", 3, ""]}'))
    assert contents(open_shards(root, shards="a.tar")) == {"a/k": ["from json"]}
    alt = open_shards(root, shards="a.tar", caption_key="alt")
    assert contents(alt) == {"a/k": ["one", "two"]} and alt.report == {"unusable_captions": 2}
    assert contents(open_shards(root, caption_key="text")) == {"00001/101": ["one", "two"]}
    txt = open_shards(root, caption_key="txt")
    assert len(txt) == 5 and txt.report == {"pictures_without_captions": 1}


def test_members_of_a_sample_need_not_be_neighbours(root: Path) -> None:
    names = ["./x/a.JPG", "x/b.WebP", "x/b.txt", "x/a.txt", "x/a.cls", "readme", "x/._a.jpg"]
    write_tar(root / "a.tar", *((name, name.encode()) for name in names))
    source = open_shards(root, shards="a.tar")
    assert contents(source) == {"a/x/a": ["x/a.txt"], "a/x/b": ["x/b.txt"]} and source.report == {}
    assert source[0]["image"] == b"./x/a.JPG"


def test_long_names_and_huge_captions(root: Path) -> None:
    key, caption = "k" * 300, "word " * 200_000
    for name, kind in (("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
        write_tar(root / f"{name}.tar", *sample(key, caption), *sample("ключ"), format=kind)
        assert contents(open_shards(root, shards=f"{name}.tar")) == {
            f"{name}/{key}": [caption.strip()],
            f"{name}/ключ": ["a dog"],
        }


def test_what_is_left_out_is_counted(root: Path) -> None:
    write_tar(
        root / "a.tar",
        *sample("kept"),
        *sample("kept", "again"),
        ("no_picture.txt", b"x"),
        ("empty_picture.jpg", b""),
        ("empty_picture.txt", b"x"),
        ("no_caption.jpg", b"x"),
        ("not_utf8.jpg", b"x"),
        ("not_utf8.txt", b"\xff\xfe"),
        ("blank.jpg", b"x"),
        ("blank.txt", b" \n"),
        ("blank.json", b'{"caption": null}'),
        ("broken.jpg", b"x"),
        ("broken.json", b'{"caption": '),
        ("deep.jpg", b"x"),
        ("deep.json", b"[" * 100_000),
        ("list.jpg", b"x"),
        ("list.json", b'["a caption?"]'),
        ("surrogate.jpg", b"x"),
        ("surrogate.json", b'{"caption": "\\ud800"}'),
        ("saved.jpg", b"x"),
        ("saved.txt", b"\xff"),
        ("saved.json", b'{"caption": "by the JSON"}'),
    )
    source = open_shards(root, shards="a.tar")
    assert contents(source) == {"a/kept": ["a dog"], "a/saved": ["by the JSON"]}
    assert source.report == {
        "repeated_keys": 1,
        "samples_without_pictures": 2,
        "pictures_without_captions": 7,
        "unusable_captions": 6,
    }


def special(name: str, kind: bytes, **fields) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def test_links_devices_and_names_that_lead_out_are_skipped(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    write_tar(
        root / "a.tar",
        special("folder", tarfile.DIRTYPE),
        *sample("good"),
        special("s.txt", tarfile.SYMTYPE, linkname="../secret.txt"),
        ("s.jpg", b"s"),
        special("h.jpg", tarfile.LNKTYPE, linkname="good.jpg"),
        special("d.jpg", tarfile.CHRTYPE, devmajor=1, devminor=5),
        special("f.jpg", tarfile.FIFOTYPE),
        *((f"{name}.{ending}", b"x") for name in ("/abs", "../up", "a/../../b") for ending in ("jpg", "txt")),
        (b"\xff.jpg".decode(errors="surrogateescape"), b"x"),
        format=tarfile.GNU_FORMAT,
    )
    source = open_shards(root, shards="a.tar")
    assert contents(source) == {"a/good": ["a dog"]}
    assert source.report == {"unsafe_members": 11, "pictures_without_captions": 1}
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        *["00000.tar", "00001.tar", "a.tar", "a.tar.index", "secret.txt"]
    ], "nothing is extracted"


@pytest.mark.parametrize("cut", ["data", "header", "trailer", "everything"])
def test_what_is_whole_in_a_truncated_shard_is_kept(root: Path, cut: str) -> None:
    path = root / "00000.tar"
    with tarfile.open(path) as tar:
        last = tar.getmember("002.jpg")
    size = {"data": last.offset_data + 9, "header": last.offset + 99, "trailer": last.offset, "everything": 0}[cut]
    os.truncate(path, size)
    source = open_shards(root)
    assert [name for name in contents(source) if name.startswith("00000")] == ["00000/000", "00000/001"] * bool(size)
    assert source.report == {"truncated_shards": 1}


def header_of(name: str, size: bytes) -> bytes:
    """A header whose size field is set by hand."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("size", [b"\xff" * 11 + b"\0", b"\x80" + b"\xff" * 11, b"77777777777\0", b"notanumber!\0"])
def test_a_header_with_an_impossible_size_ends_the_shard(root: Path, size: bytes) -> None:
    path = root / "a.tar"
    write_tar(path, *sample("good"))
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-1].offset + 1024
    path.write_bytes(whole[:end] + header_of("bad.jpg", size) + whole[end:])
    source = open_shards(root, shards="a.tar")
    assert contents(source) == {"a/good": ["a dog"]} and source.report == {"truncated_shards": 1}


def test_pickle_holds_no_open_file_and_reads_the_same(root: Path) -> None:
    source = open_shards(root)
    source[0]
    again = pickle.loads(pickle.dumps(source))
    assert contents(again) == contents(source) and again[2] == source[2] and again.fingerprint == source.fingerprint


def test_many_threads_read_many_shards(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        write_tar(root / f"{number:02d}.tar", *sample("k", f"caption {number}"))
    source = open_shards(root, shards="??.tar")
    few = tar_index.lru_cache(maxsize=2)(tar_index.opened.__wrapped__)
    monkeypatch.setattr(webdataset, "opened", few)
    monkeypatch.setattr(tar_index, "opened", few)
    with ThreadPoolExecutor(16) as pool:
        examples = list(pool.map(source.__getitem__, [i % 20 for i in range(2000)]))
    assert all(
        example == {"id": f"{i % 20:02d}/k", "image": jpeg("red"), "captions": [f"caption {i % 20}"]}
        for i, example in enumerate(examples)
    )


def test_a_shard_that_goes_away_gives_no_picture(root: Path) -> None:
    source = open_shards(root)
    tar_index.opened.cache_clear()
    (root / "00000.tar").unlink()
    os.truncate(root / "00001.tar", 600)
    assert source[0] == {"id": "00000/000", "image": b"", "captions": []}
    assert source[4] == {"id": "00001/101", "image": b"", "captions": []}


def test_fingerprint_is_of_ids_and_captions_and_not_of_the_place(root: Path, tmp_path: Path) -> None:
    fingerprint = open_shards(root).fingerprint
    shutil.copytree(root, tmp_path / "other", ignore=shutil.ignore_patterns("*.index"))
    assert open_shards(tmp_path / "other").fingerprint == fingerprint and len(fingerprint) == 64
    assert open_shards(root, shards="00000.tar").fingerprint != fingerprint
    write_tar(root / "00001.tar", *sample("100", "a cow"), *sample("101", "x"))
    assert open_shards(root).fingerprint != fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "/no/such/folder"}, "data root '/no/such/folder' is not a folder; set --config.data.root="),
        ({"root": ""}, "data root '' is not a folder"),
        ({"shards": ""}, r"shards '': give a pattern relative to the data root, such as '\*\.tar'"),
        ({"shards": "/data/*.tar"}, "shards '/data/.*: give a pattern relative to the data root"),
        ({"shards": "x*.tar"}, r"x\*.tar: no file that ends in \.tar is there; check the root and the pattern"),
        ({"shards": "00007.tar"}, r"00007.tar: no file that ends in \.tar is there"),
        ({"shards": "*.txt"}, r"no file that ends in \.tar is there"),
        ({"shards": "{00000..00003}.tar"}, r"2 of the shards are missing \(first: 00002.tar\); bring them, or use"),
        ({"shards": "{0..99999999999}.tar"}, r"\{0\.\.99999999999\} are more than 1000000 names; check the range"),
        (
            {"caption_key": "prompt"},
            r"no sample has a picture and a caption \(.*_captions': 5\}\); check .*caption_key",
        ),
    ],
)
def test_wrong_roots_patterns_and_keys(root: Path, changes: dict, message: str) -> None:
    (root / "notes.txt").write_text("")
    with pytest.raises(UserError, match=message) as caught:
        open_shards(root, **changes)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_tar(root: Path) -> None:
    (root / "00000.tar").write_text("<html>Access denied</html>" * 50)
    with pytest.raises(UserError, match=r"00000.tar: not a tar file; unpack it if it is compressed"):
        open_shards(root)
    with tarfile.open(root / "00000.tar", "w:gz") as tar:
        tar.add(root / "00001.tar")
    with pytest.raises(UserError, match=r"00000.tar: not a tar file"):
        open_shards(root)


def test_a_shard_that_cannot_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tar_index, "_index_tar", refuse)
    with pytest.raises(UserError, match=r"00000.tar: the shard cannot be read \(Permission denied\); check the file"):
        open_shards(root)
