"""The reader of pairs of products: what a row says, what may be absent, what is left out, what is refused."""

from pathlib import Path

import numpy as np
import pytest

from maskvlm_jax.data.batch import MEAN_COLOUR
from maskvlm_jax.data.sources import product_pairs
from maskvlm_jax.data.sources.opening import open_source
from maskvlm_jax.runtime.errors import UserError
from tests.data.sources.annotated import data_of, examples, write_pictures

HEADER = "image1,text1,image2,text2,label"


def open_products(root: Path, *rows: str, header: str = HEADER, **changes):
    (root / "train.csv").write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return open_source(data_of("product_pairs", root, product_pairs.FILES, **changes), "train", 32)


@pytest.fixture
def products(tmp_path: Path) -> Path:
    write_pictures(tmp_path, "a.jpg", "b.jpg", "é.jpg")
    return tmp_path


def test_pairs_of_products_are_read(products: Path) -> None:
    source = open_products(products, 'a.jpg,"a  cup, blue",b.jpg,Tasse é,1', "", "b.jpg,x,é.jpg,y,0")
    assert examples(source)[0] == {
        "id": "a.jpg#0",
        "image": b"a.jpg",
        "captions": ["a cup, blue"],
        "image2": b"b.jpg",
        "text2": "Tasse é",
        "label": 1,
        "absent": [],
    }
    assert source[1]["image2"] == "é.jpg".encode() and source[1]["label"] == 0 and source.report == {}


def test_pairs_of_products_may_have_ids_and_their_columns_any_order(products: Path) -> None:
    header = "label,id,text2,image2,text1,image1"
    source = open_products(products, "0,p7,two,b.jpg,one,a.jpg", header=header)
    assert (source.id(0), source.captions(0), source[0]["text2"]) == ("p7", ["one"], "two")
    with pytest.raises(UserError, match=r"train.csv row 3: the id 'p7' is that of train.csv row 2 too"):
        open_products(products, "0,p7,two,b.jpg,one,a.jpg", "1,p7,two,b.jpg,one,a.jpg", header=header)


@pytest.mark.parametrize(
    ("row", "absent"),
    [
        (",one,b.jpg,two,1", ["image"]),
        ("a.jpg,,b.jpg,two,1", ["captions"]),
        ("a.jpg,one,,two,1", ["image2"]),
        ("a.jpg,one,b.jpg,  ,1", ["text2"]),
        (",one,b.jpg,,1", ["image", "text2"]),
    ],
)
def test_what_is_empty_is_absent(products: Path, row: str, absent: list[str]) -> None:
    example = open_products(products, row)[0]
    assert example["absent"] == absent and example["captions"][0]
    for key, name in (("image", b"a.jpg"), ("image2", b"b.jpg")):
        stands = np.all(example[key] == MEAN_COLOUR) if key in absent else example[key] == name
        assert stands, key
    assert (example["text2"] == "") == ("text2" in absent)


def test_a_pair_that_says_nothing_of_one_product_or_lacks_a_file_is_left_out(products: Path) -> None:
    source = open_products(products, "a.jpg,one,,,1", ",,b.jpg,two,0", "c.jpg,one,b.jpg,two,0", "a.jpg,one,b.jpg,two,0")
    assert len(source) == 1
    assert source.report == {"rows_with_an_empty_product": 2, "missing_pictures": 1, "rows_without_picture": 1}


def test_both_texts_are_cleaned_alike(products: Path) -> None:
    source = open_products(products, "a.jpg,One-Two!,b.jpg,Three/Four?,1", "a.jpg,??,b.jpg,x,1", clean="albef")
    assert source.captions(0) == ["one two"] and source[0]["text2"] == "three four"
    assert source[1]["absent"] == ["captions"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.jpg,one,b.jpg,two,2", r"train.csv row 2: the label '2' must be 1, the same product, or 0, another"),
        ("a.jpg,one,b.jpg,two,", r"row 2: the label '' must be"),
        ("a.jpg,one,two,b.jpg,two,1", r"row 2: 6 columns instead of 5; put quotes around a text with commas"),
        ('a.jpg,"one,b.jpg,two,1', r"unexpected end of data; check the quotes"),
        ("../a.jpg,one,b.jpg,two,1", r"row 2: picture name '../a.jpg' is not a path inside the picture folder"),
    ],
)
def test_a_row_of_products_that_is_wrong_is_named(products: Path, row: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_products(products, row)


@pytest.mark.parametrize("header", ["image1,text1,image2,text2", "a,b", "", f"{HEADER},label"])
def test_another_header_is_refused(products: Path, header: str) -> None:
    with pytest.raises(UserError, match=r"train.csv row 1: the header is .*; give image1,text1,image2,text2,label"):
        open_products(products, "a.jpg,one,b.jpg,two,1", header=header)
