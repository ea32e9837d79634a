"""The `parquet` source: the columns it takes, what it reads of them, and what each bad input says."""

import io
import json
import os
import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maskvlm_jax.data.sources.parquet import Parquet
from maskvlm_jax.runtime.errors import UserError


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def hub_rows(numbers: range) -> dict[str, list]:
    return {
        "image": [{"bytes": png(k), "path": f"{k}.png"} for k in numbers],
        "caption": [f"  caption\n{k} " for k in numbers],
        "url": ["http://x"] * len(numbers),
    }


def write(path: Path, columns: dict, rows: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two files of seven and three rows, three rows a group."""
    write(tmp_path / "set/data/train-0.parquet", hub_rows(range(7)))
    write(tmp_path / "set/data/train-1.parquet", hub_rows(range(7, 10)))
    return tmp_path / "set"


def open_table(folder: Path, **changes) -> Parquet:
    return Parquet(**({"root": str(folder), "shards": "data/*.parquet"} | changes))


def contents(source: Parquet) -> dict[str, list[str]]:
    return {source.id(i): source.captions(i) for i in range(len(source))}


def test_rows_of_all_files_in_order(root: Path) -> None:
    source = open_table(root)
    assert list(contents(source)) == [f"data/train-0/{k}" for k in range(7)] + [f"data/train-1/{k}" for k in range(3)]
    assert [source.captions(i) for i in range(10)] == [[f"caption {i}"] for i in range(10)]
    assert source[8] == {"id": "data/train-1/1", "image": png(8), "captions": ["caption 8"]}
    assert source.report == {}
    for index in (10, -1):
        with pytest.raises(IndexError):
            source[index]


TEXT, TEXTS, BYTES = pa.string(), pa.list_(pa.string()), pa.binary()
PICTURE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.mark.parametrize(
    ("picture", "caption"),
    [
        (("image", PICTURE), ("caption", TEXT)),
        (("jpg", BYTES), ("text", TEXTS)),
        (("photo", pa.large_binary()), ("sentences", pa.large_list(pa.large_string()))),
        (("png", pa.struct({"bytes": pa.large_binary()})), ("sentence", pa.large_string())),
    ],
)
def test_columns_are_told_by_type_and_usual_name(tmp_path: Path, picture: tuple, caption: tuple) -> None:
    cell = {"bytes": b"p", "path": None} if pa.types.is_struct(picture[1]) else b"p"
    words = ["one", " two"] if pa.types.is_nested(caption[1]) else "one"
    columns = {
        "number": pa.array([1]),
        picture[0]: pa.array([cell], picture[1]),
        caption[0]: pa.array([words], caption[1]),
    }
    write(tmp_path / "a.parquet", columns)
    source = open_table(tmp_path, shards="*.parquet")
    assert source[0] == {"id": "a/0", "image": b"p", "captions": ["one", "two"] if isinstance(words, list) else ["one"]}
    assert source.captions(0) == source[0]["captions"]


def test_columns_can_be_named(root: Path) -> None:
    write(root / "b.parquet", {"a": [b"a"], "b": [b"b"], "left": ["l"], "right": ["r"]})
    source = open_table(root, shards="b.parquet", image_key="b", caption_key="right")
    assert source[0] == {"id": "b/0", "image": b"b", "captions": ["r"]}


def test_what_is_missing_or_unusable_is_empty(tmp_path: Path) -> None:
    invalid = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )
    captions = pa.concat_arrays([pa.array([None, " ", "good"]), invalid])
    pictures = pa.array([{"bytes": b"p"}, None, {"bytes": None}, {"bytes": b"q"}], PICTURE)
    write(tmp_path / "a.parquet", {"image": pictures, "caption": captions})
    lists = pa.array([None, [], ["one", None, "two"]], TEXTS)
    write(tmp_path / "b.parquet", {"image": pictures[:3], "caption": lists})
    source = open_table(tmp_path, shards="a.parquet")
    assert [source[i]["image"] for i in range(4)] == [b"p", b"", b"", b"q"]
    assert [source.captions(i) for i in range(4)] == [source[i]["captions"] for i in range(4)] == [[], [], ["good"], []]
    source = open_table(tmp_path, shards="b.parquet")
    assert [source.captions(i) for i in range(3)] == [[], [], ["one", "two"]]


def reads(source: Parquet, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The columns of every row group that is read from now on."""
    seen = []
    read = pq.ParquetFile.read_row_group

    def noted(self, number, columns, **more):
        seen.append(columns)
        return read(self, number, columns=columns, **more)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    return seen


def test_only_the_columns_in_use_are_read_and_each_row_group_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_table(root)
    seen = reads(source, monkeypatch)
    contents(source)
    assert seen == [["caption"]] * 4
    seen.clear()
    for index in range(10):
        source[index]
    assert seen == [["image", "caption"]] * 4


def test_threads_that_want_one_row_group_read_it_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_table(root)
    seen = reads(source, monkeypatch)
    barrier = threading.Barrier(8)

    def read(index: int) -> dict:
        barrier.wait(timeout=60)
        return source[index % 3]

    with ThreadPoolExecutor(8) as pool:
        examples = list(pool.map(read, range(8)))
    assert [example["image"] for example in examples] == [png(i % 3) for i in range(8)]
    assert len(seen) == 1


def test_many_threads_read_in_any_order(root: Path) -> None:
    source = open_table(root)
    with ThreadPoolExecutor(16) as pool:
        examples = list(pool.map(source.__getitem__, [i * 7 % 10 for i in range(400)]))
    assert [example["image"] for example in examples] == [png(i * 7 % 10) for i in range(400)]


def test_pickle_holds_no_table_and_reads_the_same(root: Path) -> None:
    source = open_table(root)
    source[0]
    state = pickle.dumps(source)
    assert png(0) not in state
    again = pickle.loads(state)
    assert contents(again) == contents(source) and again[2] == source[2] and again.fingerprint == source.fingerprint


def test_a_file_that_goes_away_or_is_damaged_gives_no_picture(root: Path) -> None:
    source = open_table(root)
    (root / "data/train-1.parquet").unlink()
    assert source[9] == {"id": "data/train-1/2", "image": b"", "captions": []} and source.captions(9) == []
    content = bytearray((root / "data/train-0.parquet").read_bytes())
    content[4:200] = bytes(196)
    (root / "data/train-0.parquet").write_bytes(content)
    assert source[0] == {"id": "data/train-0/0", "image": b"", "captions": []}


def test_fingerprint_is_of_the_files_and_not_of_the_place(root: Path, tmp_path: Path) -> None:
    fingerprint = open_table(root).fingerprint
    shutil.copytree(root, tmp_path / "other")
    assert open_table(tmp_path / "other").fingerprint == fingerprint and len(fingerprint) == 64
    assert open_table(root, shards="data/*-0.parquet").fingerprint != fingerprint
    assert open_table(root, caption_key="url").fingerprint != fingerprint
    write(root / "data/train-1.parquet", hub_rows(range(17, 20)))
    assert open_table(root).fingerprint != fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "/no/such/folder"}, "data root '/no/such/folder' is not a folder; set --config.data.root="),
        ({"shards": "*.parquet"}, r"\*.parquet: no file that ends in \.parquet is there"),
        ({"shards": "data/train-{0..4}.parquet"}, r"3 of the shards are missing \(first: data/train-2.parquet\)"),
        (
            {"image_key": "picture"},
            "train-0.parquet: 'picture' is not there or of another type; "
            r"set --config.data.image_key to one of image \(there are image, caption, url\)",
        ),
        ({"caption_key": "image"}, r"'image' is not there .*caption_key to one of caption, url \(there are image, cap"),
    ],
)
def test_wrong_roots_patterns_and_keys(root: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_table(root, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"a": [b"p"], "b": [b"p"], "caption": ["x"]},
            "no name tells which is the image_key; .*image_key to one of a, b",
        ),
        (
            {"image": [b"p"], "a": ["x"], "b": ["y"]},
            "no name tells which is the caption_key; .*caption_key to one of a, b",
        ),
        ({"image": ["path"], "caption": ["x"]}, "none of image, caption is of a type for image_key; take another set"),
        ({"image": [b"p"], "caption": [1]}, "none of image, caption is of a type for caption_key; take another set"),
        ({"image": pa.array([], BYTES), "caption": pa.array([], TEXT)}, "a.parquet: there is no row; check the files"),
    ],
)
def test_columns_that_cannot_be_told(tmp_path: Path, columns: dict, message: str) -> None:
    write(tmp_path / "a.parquet", columns)
    with pytest.raises(UserError, match=message) as caught:
        open_table(tmp_path, shards="a.parquet")
    assert "\n" not in str(caught.value)


def test_all_files_must_have_the_columns(root: Path) -> None:
    write(root / "data/train-2.parquet", {"image": [b"p"], "text": ["x"]})
    message = r"train-2.parquet: columns 'image' and 'caption' are not as in data/train-0.parquet; leave the file out"
    with pytest.raises(UserError, match=message):
        open_table(root)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"<html>Access denied</html>", None])
def test_a_file_that_is_not_whole(root: Path, content: bytes | None) -> None:
    path = root / "data/train-1.parquet"
    if content is None:
        os.truncate(path, path.stat().st_size - 20)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"train-1.parquet: not a whole Parquet file; take it anew") as caught:
        open_table(root)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pq, "ParquetFile", refuse)
    with pytest.raises(
        UserError, match=r"train-0.parquet: the file cannot be read \(Permission denied\); take it anew"
    ):
        open_table(root)


def test_columns_that_fields_read_are_in_the_examples(tmp_path: Path) -> None:
    columns = hub_rows(range(4)) | {"label": [2, 0, None, 1], "second": [{"bytes": png(9), "path": None}] * 4}
    write(tmp_path / "train-0.parquet", columns)
    source = open_table(tmp_path, shards="*.parquet", others=("label", "second", "elsewhere"))
    assert source[1] == {"id": "train-0/1", "image": png(1), "captions": ["caption 1"], "label": 0, "second": png(9)}
    assert source[2]["label"] is None and source.classes == ()
    write(tmp_path / "train-1.parquet", hub_rows(range(4)))
    with pytest.raises(UserError, match=r"train-1\.parquet: columns .* and 'label' are not as in train-0"):
        open_table(tmp_path, shards="*.parquet", others=("label",))


def test_a_set_of_classes_has_their_names_for_captions(tmp_path: Path) -> None:
    table = pa.table({"image": hub_rows(range(3))["image"], "label": [1, 0, None]})
    info = {"info": {"features": {"label": {"names": ["cat", "red  panda"], "_type": "ClassLabel"}, "image": {}}}}
    named = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(named, tmp_path / "named-0.parquet")
    source = open_table(tmp_path, shards="named*.parquet", others=("label",))
    assert source.classes == ("cat", "red  panda") and source.columns == ("image", "label")
    assert contents(source) == {"named-0/0": ["red panda"], "named-0/1": ["cat"], "named-0/2": []}
    assert source[0]["label"] == 1 and source[0]["captions"] == ["red panda"]
    pq.write_table(table, tmp_path / "numbers-0.parquet")
    numbers = open_table(tmp_path, shards="numbers*.parquet", others=("label",))
    assert numbers.captions(0) == ["1"] and numbers.classes == ()
    with pytest.raises(UserError, match="is of a type for caption_key"):
        open_table(tmp_path, shards="named*.parquet")
    for wrong in (b"[]", b"{", json.dumps({"info": {"features": {"label": {"names": [1]}}}}).encode()):
        pq.write_table(table.replace_schema_metadata({"huggingface": wrong}), tmp_path / "wrong-0.parquet")
        assert open_table(tmp_path, shards="wrong*.parquet", others=("label",)).classes == ()
