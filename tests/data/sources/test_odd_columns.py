"""Parquet files whose columns have other people's names and types."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import data_sets
from maskvlm_jax.data.sources import opening
from maskvlm_jax.data.sources.parquet import Parquet
from maskvlm_jax.runtime.errors import UserError
from tests.data.sources.tars import jpeg


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def bytes_of(count: int) -> list[bytes]:
    return [jpeg("red")] * count


@pytest.mark.parametrize("other", ["filename", "label"])
def test_a_text_is_no_caption_because_it_is_the_only_one(other, tmp_path):
    parquet(tmp_path / "x.parquet", image=bytes_of(2), **{other: ["p0", "p1"]})
    with pytest.raises(UserError, match=f"set --config.data.caption_key to one of {other}"):
        Parquet(root=str(tmp_path), shards="x.parquet")
    assert Parquet(root=str(tmp_path), shards="x.parquet", caption_key=other).captions(1) == ["p1"]


KINDS = {
    "category": lambda texts: pa.array(texts).dictionary_encode(),
    "view": lambda texts: pa.array(texts, pa.string_view()),
    "fixed list": lambda texts: pa.array([[text, text] for text in texts], pa.list_(pa.string(), 2)),
    "list of categories": lambda texts: pa.ListArray.from_arrays([0, 1, 2], pa.array(texts).dictionary_encode()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_captions_of_every_kind_of_text_are_read(kind, tmp_path):
    parquet(tmp_path / "x.parquet", image=bytes_of(2), caption=KINDS[kind](["a dog", "a cat"]))
    source = Parquet(root=str(tmp_path), shards="x.parquet")
    expected = ["a cat"] * (2 if kind == "fixed list" else 1)
    assert source.captions(1) == source[1]["captions"] == expected


NESTED = {
    "sentences.raw": [[{"raw": "a dog", "id": "1"}], [{"raw": "a cat", "id": "2"}, {"raw": None, "id": "3"}, None]],
    "caption.text": [{"text": "a dog", "lang": "en"}, {"text": "a cat", "lang": "en"}],
    "captions.texts": [{"texts": ["a dog"], "of": "me"}, {"texts": ["a cat"], "of": "you"}],
    "caption.en": ["a dog", "a cat"],  # no struct, but a name with a dot
}


@pytest.mark.parametrize("key", NESTED)
def test_captions_in_structs_are_read(key, tmp_path):
    column = key if key == "caption.en" else key.split(".")[0]
    parquet(tmp_path / "x.parquet", image=bytes_of(2), filename=["a.jpg", "b.jpg"], **{column: NESTED[key]})
    for given in (key, "" if column != key else key):
        source = Parquet(root=str(tmp_path), shards="x.parquet", caption_key=given)
        assert source.columns == ("image", key)
        assert source.captions(1) == source[1]["captions"] == ["a cat"]


def test_fields_of_structs_that_no_name_tells_are_listed(tmp_path):
    parquet(tmp_path / "x.parquet", image=bytes_of(2), told=[{"left": "a", "right": "b"}] * 2)
    with pytest.raises(UserError, match=r"caption_key to one of told\.left, told\.right"):
        Parquet(root=str(tmp_path), shards="x.parquet")


def test_the_columns_that_are_read_are_told_once(tmp_path, capsys):
    parquet(tmp_path / "train.parquet", image=bytes_of(2), caption=["a dog", "a cat"])
    data = data_sets.data_block("parquet").to_dict() | {"root": str(tmp_path)}
    for _ in range(2):
        opening.open_source(data, "train", 32)
    assert capsys.readouterr().out == f"{tmp_path}: pictures are read from 'image', captions from 'caption'\n"


def test_pictures_named_by_paths_alone_are_read_where_they_are_and_told_where_not(tmp_path):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = pa.array([{"bytes": None, "path": f"{i}.jpg"} for i in range(2)], kind)
    parquet(tmp_path / "x.parquet", image=cells, caption=["a dog", "a cat"])
    with pytest.raises(UserError, match="only paths such as '0"):
        Parquet(root=str(tmp_path), shards="x.parquet")
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg("red"))
    source = Parquet(root=str(tmp_path), shards="x.parquet")
    assert source[1]["image"] == jpeg("red")
    for path in ("a\0b", "/etc/hostname"):
        assert source._picture({"bytes": None, "path": path}) == b""
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    assert source._picture({"bytes": None, "path": "elsewhere/1.jpg"}) == jpeg("red")
    outside = pa.array([{"bytes": None, "path": "../x.jpg"}], kind)
    (tmp_path / "inner").mkdir()
    parquet(tmp_path / "inner" / "x.parquet", image=outside, caption=["a dog"])
    (tmp_path / "x.jpg").write_bytes(jpeg("red"))
    with pytest.raises(UserError, match="only paths"):
        Parquet(root=str(tmp_path / "inner"), shards="x.parquet")


def test_columns_of_one_name_and_paths_that_are_none(tmp_path):
    names = ["image", "caption", "caption"]
    pq.write_table(
        pa.Table.from_arrays([pa.array(bytes_of(1)), pa.array(["a"]), pa.array(["b"])], names), tmp_path / "x.parquet"
    )
    with pytest.raises(UserError, match="several columns 'caption'"):
        Parquet(root=str(tmp_path), shards="x.parquet")
    kind = pa.struct({"bytes": pa.binary(), "path": pa.int64()})
    cells = pa.array([{"bytes": bytes_of(1)[0], "path": 1}, {"bytes": None, "path": 2}], kind)
    parquet(tmp_path / "x.parquet", image=cells, caption=["a dog", "a cat"])
    assert Parquet(root=str(tmp_path), shards="x.parquet")[1]["image"] == b""
