"""Folders and tables of classes: what is read, how classes are numbered, and what each bad input says."""

import io
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from configs import pretrain
from maskvlm_jax.data.sources import opening
from maskvlm_jax.data.sources.training_set import Spread
from maskvlm_jax.runtime.errors import UserError


def png(number: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(content, "PNG")
    return content.getvalue()


def put(path: Path, content: bytes | str = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def block(root: Path, **values) -> dict:
    data = pretrain.get_config("data=files").data.to_dict()
    return data | {"source": "image_folder", "root": str(root), "images": "", "splits": {}} | values


def opened(root: Path, split: str = "val", **values):
    return opening.open_source(block(root, **values), split, 32)


@pytest.fixture
def root(tmp_path):
    for number, name in enumerate(("red panda/1.png", "red panda/deep/2.JPG", "cat/1.png", "zebra/1.jpeg")):
        put(tmp_path / "train" / name, png(number))
    put(tmp_path / "val" / "zebra" / "9.png", png(9))
    put(tmp_path / "val" / "cat" / "1.png", png(8))
    put(tmp_path / "val" / "cat" / "notes.txt", "no picture")
    put(tmp_path / "val" / "cat" / ".hidden.png", png(1))
    put(tmp_path / "val" / "stray.png", png(1))
    return tmp_path


def test_a_class_is_the_name_of_a_folder_and_has_one_number_in_all_splits(root):
    train, val = opened(root, "train"), opened(root)
    assert [train.id(i) for i in range(len(train))] == [
        "train/cat/1.png",
        "train/red panda/1.png",
        "train/red panda/deep/2.JPG",
        "train/zebra/1.jpeg",
    ]
    assert train.classes == val.classes == ("cat", "red panda", "zebra")
    assert [train[i]["label"] for i in range(4)] == [0, 1, 1, 2]
    assert val[1] == {
        "id": "val/zebra/9.png",
        "image": png(9),
        "captions": ["zebra"],
        "label": 2,
        "class": "zebra",
    }
    assert len(val) == 2 and val.report == {"other_files": 2}
    assert opening.existing_splits(block(root)) == ["train", "val"]


def test_a_class_that_only_another_split_has_changes_no_number_of_the_others(root):
    put(root / "val" / "aardvark" / "1.png", png(3))
    train, val = opened(root, "train"), opened(root)
    assert val.classes == (*train.classes, "aardvark")
    assert [val[i]["label"] for i in range(len(val))] == [val.classes.index(val[i]["class"]) for i in range(len(val))]


def test_a_split_without_the_training_split_has_its_own_classes(root):
    (root / "train").rename(root / "elsewhere")
    assert opened(root).classes == ("cat", "zebra")


def test_a_table_says_classes_too(root):
    put(root / "val.csv", 'image,label\ntrain/cat/1.png,"cat, tabby"\ntrain/zebra/1.jpeg,zebra\n\n')
    source = opened(root, splits={"val": "val.csv", "train": "train"})
    assert source.classes == ("cat", "red panda", "zebra", "cat, tabby")
    assert [source[i]["label"] for i in range(2)] == [3, 2] and source.captions(0) == ["cat, tabby"]
    put(root / "val.csv", "image,label\ncat/1.png,cat\nno.png,cat\n")
    with pytest.raises(UserError, match=r"1 of 2 pictures of the split are not in"):
        opened(root, images="train", splits={"val": "val.csv"})
    source = opened(root, images="train", splits={"val": "val.csv"}, max_missing=0.5)
    assert source.report == {"missing_pictures": 1} and source[0]["image"] == png(2)


def test_accents_are_composed_in_names_of_classes_and_taken_apart_on_disk(tmp_path):
    put(tmp_path / "val" / unicodedata.normalize("NFD", "chaton éveillé") / "é.png", png(3))
    put(tmp_path / "val" / "犬" / "1.png", png(4))
    source = opened(tmp_path)
    assert source.classes == ("chaton éveillé", "犬") and source[0]["image"] == png(3)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("image,caption\na.png,x\n", r"val\.csv row 1: the header is 'image,caption'; it must be image,label"),
        ("", r"val\.csv row 1: the header is ''"),
        ("image,label\na.png,x\na.png,y\n", r"val\.csv row 3: picture 'a\.png' is there already"),
        ("image,label\na.png, \n", r"val\.csv row 2: the class is empty"),
        ("image,label\na.png,x,y\n", r"val\.csv row 2: 3 columns instead of 2"),
        ("image,label\n../a.png,x\n", r"row 2: picture name '\.\./a\.png' is not a path inside"),
        ('image,label\na.png,"x\n', r"val\.csv row 2: .*; check the quotes"),
        ("image,label\n", r"there is no picture in a folder of its class"),
    ],
)
def test_a_bad_table_is_told_in_a_line(tmp_path, table, told):
    put(tmp_path / "val.csv", table)
    with pytest.raises(UserError, match=told) as raised:
        opened(tmp_path, splits={"val": "val.csv"})
    assert "\n" not in str(raised.value)


def test_what_is_not_there_is_told(root):
    with pytest.raises(UserError, match=r"test: there is no such folder of classes, and no table; set"):
        opened(root, "test")
    with pytest.raises(UserError, match="is not a folder"):
        opened(root / "nowhere")
    (root / "empty").mkdir()
    with pytest.raises(UserError, match="there is no picture in a folder of its class"):
        opened(root, "empty")


def test_a_few_examples_are_spread_over_the_classes(root):
    source = opened(root, "train")
    assert [Spread(source, 2).id(i) for i in range(2)] == [source.id(0), source.id(2)]
    assert [Spread(source, count)[0]["label"] for count in (0, 1, 99)] == [0, 0, 0]
    assert [len(Spread(source, count)) for count in (0, 3, 4, 99)] == [4, 3, 4, 4]
    three = Spread(source, 3)
    assert {three[i]["label"] for i in range(3)} == {0, 1} and three.captions(2) == three[2]["captions"]
    assert three.classes == source.classes and three.report == source.report
