"""Caption files and split lists in other people's forms, encodings and spellings."""

import json
import unicodedata

import pytest

from maskvlm_jax.data import decoding
from maskvlm_jax.data.sources import caption_files, written_text
from maskvlm_jax.data.sources.files import Files
from maskvlm_jax.runtime.errors import UserError
from tests.data import hostile
from tests.peoples_files import NAMES, pictures


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path):
    assert written_text.usable_captions([b"\xef\xbb\xbfa dog", "\ufeffa dog"]) == ["a dog", "a dog"]


@pytest.mark.parametrize(
    "document",
    [
        [{"image": "a.jpg", "caption": "a dog"}, {"image": "b.jpg", "caption": ["a cat", "it"], "image_id": 1}],
        {"a.jpg": "a dog", "b.jpg": ["a cat", "it"]},
    ],
)
def test_lists_of_pairs_and_mappings_are_read(document, tmp_path):
    (tmp_path / "captions.json").write_text(json.dumps(document))
    table = caption_files.read_captions(tmp_path / "captions.json")
    assert table.captions == {"a.jpg": ["a dog"], "b.jpg": ["a cat", "it"]}


def test_a_coco_file_without_a_picture_is_no_mapping(tmp_path):
    (tmp_path / "captions.json").write_text('{"images": [], "annotations": []}')
    assert caption_files.read_captions(tmp_path / "captions.json").captions == {}


def test_a_message_lists_a_few_names_and_a_count(tmp_path):
    (tmp_path / "captions.json").write_text(json.dumps({f"p{i}.jpg": {"text": "a dog"} for i in range(30_000)}))
    with pytest.raises(UserError) as error:
        caption_files.read_captions(tmp_path / "captions.json")
    assert len(str(error.value)) < 500 and "and 29,992 more" in str(error.value)


@pytest.mark.parametrize(("on_disk", "listed"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_are_found_however_their_accents_are_written(on_disk, listed, tmp_path):
    name = "schön/über/grüner käfer.png"
    file = tmp_path / unicodedata.normalize(on_disk, name)
    file.parent.mkdir(parents=True)
    hostile.picture(0).save(file)
    written = {kind: unicodedata.normalize(kind, name) for kind in ("NFC", "NFD")}
    (tmp_path / "captions.csv").write_text(f"image,caption\n{written[listed]},a beetle\n", encoding="utf-8")
    for in_list in written.values():
        (tmp_path / "all.txt").write_text(f"{in_list}\n", encoding="utf-8")
        source = Files(root=str(tmp_path), images="", captions="captions.csv", split="all", splits={"all": "all.txt"})
        assert source.id(0) == written["NFC"] and decoding.decode(source[0]["image"]).size
        assert source.report == {}


def test_names_that_are_the_same_keep_all_captions(tmp_path):
    names = {"a.jpg": "one", "./a.jpg": "two", "\u00e9.jpg": "one", "e\u0301.jpg": "two"}
    (tmp_path / "captions.json").write_text(json.dumps(names))
    table = caption_files.read_captions(tmp_path / "captions.json")
    assert table.captions == {"a.jpg": ["one", "two"], "\u00e9.jpg": ["one", "two"]}


def test_half_a_letter_is_no_caption_and_no_name(tmp_path):
    root = pictures(tmp_path, NAMES[:2])
    (root / "c.json").write_text(json.dumps({NAMES[0]: ["bad \ud800 x", "a dog"], NAMES[1]: "a cat"}))
    source = Files(root=str(root), images="images", captions="c.json", split="all", splits=None)
    assert [source.captions(i) for i in range(2)] == [["a dog"], ["a cat"]]
    for text in (json.dumps({"\ud800.jpg": "x"}), '{"a": ' + "1" * 5_000 + "}"):
        (root / "c.json").write_text(text)
        with pytest.raises(UserError, match=r"not UTF-8 text|invalid JSON"):
            caption_files.read_captions(root / "c.json")


def test_split_lists_of_every_system_are_read(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"a.jpg\rb.jpg\r\nc.jpg\n")
    assert caption_files.read_split_list(tmp_path / "x.txt", "flag") == ["a.jpg", "b.jpg", "c.jpg"]


@pytest.mark.parametrize("document", [[["a.jpg", "x"]], [], [{"filename": "a.jpg", "caption": "x"}]])
def test_lists_of_another_form_are_told_what_is_read(document, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="a list of what is not known; give a list of"):
        caption_files.read_captions(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("document", "captions"),
    [
        ('{"image": "a.jpg", "caption": "x"}', {"a.jpg": ["x"]}),
        ('{"image": ["a.jpg", "b.jpg", "a.jpg"], "caption": ["x", "y", "z"]}', {"a.jpg": ["x", "z"], "b.jpg": ["y"]}),
        ('{"image": ["a.jpg"], "captions": [["x", "y"]]}', {"a.jpg": ["x", "y"]}),
        ('{"a.jpg": "x", "b.jpg": "y", "a.jpg": "z"}', {"a.jpg": ["x", "z"], "b.jpg": ["y"]}),
    ],
)
def test_tables_of_two_columns_and_names_that_stand_twice(document, captions, tmp_path):
    (tmp_path / "a.json").write_text(document)
    assert caption_files.read_captions(tmp_path / "a.json").captions == captions


def test_columns_of_two_lengths_are_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"image": ["a.jpg", "b.jpg"], "caption": ["x"]}')
    with pytest.raises(UserError, match="must be lists of one length"):
        caption_files.read_captions(tmp_path / "a.json")


def test_rows_of_blanks_and_the_end_of_files_of_dos_are_no_captions(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"image,caption\r\na.jpg,x\r\n  \t\r\n , \r\nb.jpg,y\r\n\x1a")
    assert caption_files.read_captions(tmp_path / "a.csv").captions == {"a.jpg": ["x"], "b.jpg": ["y"]}


def test_of_two_names_that_differ_by_how_accents_are_written_the_composed_one_is_read(tmp_path):
    root = pictures(tmp_path, NAMES[:2])
    composed, apart = "\u00e9.png", "e\u0301.png"
    for name, source in ((apart, NAMES[0]), (composed, NAMES[1])):
        (root / "images" / source).rename(root / "images" / name)
    (root / "captions.csv").write_text(f"image,caption\n{apart},a dog\n", encoding="utf-8")
    source = Files(root=str(root), images="images", captions="captions.csv", split="all", splits=None)
    assert source[0]["image"] == (root / "images" / composed).read_bytes()
