"""Tar files as other people's tools write them."""

import pytest

from maskvlm_jax.data.sources import caption_files
from maskvlm_jax.data.sources.webdataset import WebDataset
from tests.data.sources.tars import jpeg, write_tar


def test_keys_with_dots_and_endings_of_several_parts_are_read(tmp_path):
    keys = ["0000", "v1.0001", "walk 2.8 final", "walk 2.9 final", "a/b.c/0002"]
    members = [(f"{key}{ending}", data) for key in keys for ending, data in ((".jpg", jpeg("red")), (".txt", b"a dog"))]
    members += [("0014.image.jpg", jpeg("red")), ("0014.caption.txt", b"a cat")]
    members += [("0015.jpg.txt", b"a cow"), ("0015.jpg", jpeg("red"))]
    members += [("0016.jfif", jpeg("red")), ("0016.txt", b"a cow")]
    write_tar(tmp_path / "x.tar", *members)
    source = WebDataset(root=str(tmp_path), shards="x.tar")
    assert [source.id(i) for i in range(len(source))] == [f"x/{key}" for key in (*keys, "0014", "0015", "0016")]
    assert [source.captions(i) for i in (5, 6)] == [["a cat"], ["a cow"]]
    assert source.report == {}


def test_what_finds_no_other_is_counted(tmp_path):
    members = [("0.jpg", jpeg("red")), ("0.txt", b"a dog"), ("1.a.jpg", jpeg("red")), ("2.b.txt", b"a dog")]
    write_tar(tmp_path / "x.tar", *members)
    source = WebDataset(root=str(tmp_path), shards="x.tar")
    assert len(source) == 1 and source.report == {"pictures_without_captions": 1, "samples_without_pictures": 1}


def test_a_picture_never_gets_the_caption_of_another_key(tmp_path):
    whole = [("v1.0000.jpg", jpeg("red")), ("v1.0000.txt", b"a dog")]
    write_tar(tmp_path / "x.tar", *whole, ("v1.0001.jpg", jpeg("red")), ("v1.0002.txt", b"a cat"), ("a/jpg", b"x"))
    source = WebDataset(root=str(tmp_path), shards="x.tar")
    assert [source.id(i) for i in range(len(source))] == ["x/v1.0000"]
    assert source.report == {"pictures_without_captions": 1, "samples_without_pictures": 1}


def test_a_side_picture_takes_no_place_of_the_pair(tmp_path):
    members = [("0.blip.txt", b"by machine"), ("0.depth.png", b"x"), ("0.jpg", jpeg("red")), ("0.txt", b"a dog")]
    write_tar(tmp_path / "x.tar", *members)
    source = WebDataset(root=str(tmp_path), shards="x.tar")
    assert (len(source), source[0]["image"], source.captions(0)) == (1, jpeg("red"), ["a dog"])


def test_tars_one_behind_the_other_are_read_to_the_end(tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", (f"{number}.jpg", jpeg(number)), (f"{number}.txt", b"a dog"))
    parts = [(tmp_path / f"{number}.tar").read_bytes() for number in range(3)]
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "x.tar").write_bytes(parts[0] + parts[1] + parts[2])
    source = WebDataset(root=str(tmp_path / "all"), shards="x.tar")
    assert [source.id(i).rpartition("/")[2] for i in range(len(source))] == ["0", "1", "2"] and not source.report
    (tmp_path / "all" / "x.tar").write_bytes(parts[0] + b"no tar" * 200)
    source = WebDataset(root=str(tmp_path / "all"), shards="x.tar")
    assert len(source) == 1 and source.report == {"truncated_shards": 1}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_texts_of_windows_editors_are_read(encoding, tmp_path):
    write_tar(tmp_path / "x.tar", ("a.jpg", jpeg(0)), ("a.txt", "ein Käfer".encode(encoding)))
    assert WebDataset(root=str(tmp_path), shards="x.tar").captions(0) == ["ein Käfer"]
    (tmp_path / "a.csv").write_bytes("image,caption\nä.jpg,ein Käfer\n".encode(encoding))
    assert caption_files.read_captions(tmp_path / "a.csv").captions == {"ä.jpg": ["ein Käfer"]}


@pytest.mark.parametrize("name", ["train [1].tar", "{a}.tar", "what?.tar"])
def test_a_shard_is_found_by_its_own_name(name, tmp_path):
    for number, shard in enumerate((name, "other.tar")):
        write_tar(tmp_path / shard, (f"{number}.jpg", jpeg(number)), (f"{number}.txt", b"a dog"))
    source = WebDataset(root=str(tmp_path), shards=name)
    assert [source.id(i).rpartition("/")[2] for i in range(len(source))] == ["0"]
