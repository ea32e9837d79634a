"""Readers of SNLI-VE and NLVR2: what a file says, what is left out and counted, what is refused."""

import json
from pathlib import Path

import pytest

from maskvlm_jax.data.sources import nlvr2, snli_ve
from maskvlm_jax.data.sources.opening import existing_splits, open_source
from maskvlm_jax.runtime.errors import UserError
from tests.data.sources.annotated import data_of, examples, write_lines, write_pictures

# --- SNLI-VE ---------------------------------------------------------------------------------------------------------


def entailed(number: int, label: str = "entailment", picture: str = "12", **more) -> dict:
    """A row as it was released."""
    row = {"Flickr30K_ID": picture, "gold_label": label, "pairID": f"{picture}.jpg#{number}r1e"}
    return row | {"sentence1": "A premise.", "sentence2": f"Sentence  {number} .", "captionID": "12.jpg#0"} | more


@pytest.fixture
def ve(tmp_path: Path) -> Path:
    write_pictures(tmp_path, "12.jpg", "34.jpg")
    return tmp_path


def open_ve(root: Path, rows: list | None = None, split: str = "train", **changes):
    if rows is not None:
        write_lines(root / snli_ve.FILES[split], rows)
    return open_source(data_of("snli_ve", root, snli_ve.FILES, **changes), split, 32)


def test_entailment_is_read_as_it_was_released(ve: Path) -> None:
    rows = [entailed(0), entailed(1, "neutral"), entailed(2, "contradiction", "34"), entailed(3, "-")]
    source = open_ve(ve, rows)
    assert examples(source)[0] == {
        "id": "12.jpg#0r1e",
        "image": b"12.jpg",
        "captions": ["Sentence 0 ."],
        "label": "entailment",
    }
    assert [one["label"] for one in examples(source)] == ["entailment", "neutral", "contradiction"]
    assert source[2]["image"] == b"34.jpg" and source.report == {"rows_without_label": 1}
    assert existing_splits(data_of("snli_ve", ve, snli_ve.FILES)) == ["train"]


@pytest.mark.parametrize(
    "key", [{"Flickr30kID": "12.jpg"}, {"Flikr30kID": "12.jpg"}, {"Flickr30K_ID": 12}, {}, {"Flickr30K_ID": " 12"}]
)
def test_the_picture_is_found_however_its_key_is_spelt(ve: Path, key: dict) -> None:
    row = {name: value for name, value in entailed(0).items() if name != "Flickr30K_ID"} | key
    assert open_ve(ve, [row])[0]["image"] == b"12.jpg"


def test_entailment_is_read_from_albefs_list(ve: Path) -> None:
    rows = [
        {"image": "12", "sentence": "an é", "label": "neutral"},
        {"image": "34.jpg", "sentence": "b", "label": "entailment"},
    ]
    (ve / "ve_dev.json").write_text(json.dumps(rows))
    source = open_source(data_of("snli_ve", ve, {"val": "ve_dev.json"}), "val", 32)
    found = [(one["id"], one["image"], one["captions"], one["label"]) for one in examples(source)]
    assert found == [("12.jpg#0", b"12.jpg", ["an é"], "neutral"), ("34.jpg#1", b"34.jpg", ["b"], "entailment")]


def test_what_cannot_be_used_is_left_out_and_counted(ve: Path) -> None:
    rows = [entailed(0), entailed(0), entailed(1, picture="99"), entailed(2, sentence2="  ")]
    source = open_ve(ve, rows)
    assert len(source) == 1
    assert source.report == {
        "repeated_rows": 1,
        "missing_pictures": 1,
        "rows_without_picture": 1,
        "rows_without_text": 1,
    }


def test_labels_are_part_of_the_fingerprint(ve: Path) -> None:
    prints = {open_ve(ve, [entailed(0, label)]).fingerprint for label in snli_ve.LABELS}
    assert len(prints) == 3 and open_ve(ve).fingerprint in prints


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([entailed(0, "maybe")], r"snli_ve_train.jsonl row 1: the label 'maybe' is none of contradiction, neutral"),
        (
            [entailed(0), entailed(0, "neutral")],
            r"row 2: the id '12.jpg#0r1e' is that of snli_ve_train.jsonl row 1 too",
        ),
        ([entailed(0, sentence2=5)], r"row 1: 'sentence2' has the wrong type: int"),
        ([entailed(0, pairID=None)], r"row 1: 'pairID' has the wrong type: NoneType"),
        ([entailed(0, picture="../12")], r"row 1: picture name '../12.jpg' is not a path inside the picture folder"),
        (
            [{"gold_label": "neutral", "sentence2": "a", "pairID": "12"}],
            r"row 1: no key tells the picture; give Flickr30K_ID",
        ),
        ([entailed(0), ["gold_label"]], r"row 2: a JSON object is expected, not list"),
        ([{"sentence2": "a"}], r"row 1: the key 'label' is missing; there are sentence2"),
        ([entailed(0, "-")], r"no row can be used \({'rows_without_label': 1}\)"),
        ([entailed(0, picture="8"), entailed(1, picture="9"), entailed(2)], r"2 of 3 pictures .*first: 8.jpg"),
    ],
)
def test_a_row_that_is_wrong_is_named(ve: Path, rows: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_ve(ve, rows)


def test_what_is_not_there_is_named(ve: Path) -> None:
    with pytest.raises(
        UserError, match=r"snli_ve_dev.jsonl: the annotation file cannot be read .*check --config.data.root"
    ):
        open_ve(ve, split="val")
    with pytest.raises(UserError, match=r"no split 'dev' in --config.data.splits; choose from test, train, val"):
        open_ve(ve, split="dev")
    write_lines(ve / snli_ve.FILES["train"], [entailed(0)])
    with pytest.raises(UserError, match=r"no such picture folder; set --config.data.images"):
        open_ve(ve, images="pictures")
    (ve / snli_ve.FILES["train"]).write_text('{"gold_label": \n')
    with pytest.raises(UserError, match=r"snli_ve_train.jsonl row 1: invalid JSON"):
        open_ve(ve)
    (ve / snli_ve.FILES["train"]).write_bytes(b'{"sentence2": "\xe9"}')
    with pytest.raises(UserError, match=r"snli_ve_train.jsonl row 1: not UTF-8 text"):
        open_ve(ve)


# --- NLVR2 -----------------------------------------------------------------------------------------------------------


def judged(identifier: str, label: str = "True", **more) -> dict:
    """A row as it was released."""
    row = {"identifier": identifier, "sentence": "Both show a dog.", "label": label, "synset": "dog"}
    return row | {"left_url": "http://a", "right_url": "http://b"} | more


def pair_names(pair: str, folder: str = "") -> list[str]:
    return [f"{folder}{pair}-img{side}.png" for side in (0, 1)]


def open_nlvr(root: Path, rows: list, split: str = "train", **changes):
    write_lines(root / nlvr2.FILES[split], rows)
    return open_source(data_of("nlvr2", root, nlvr2.FILES, **changes), split, 32)


@pytest.mark.parametrize(
    ("identifier", "folder", "more"),
    [
        ("train-10171-0-0", "train/17/", {"directory": 17}),
        ("train-10171-0-0", "train/17/", {"directory": "17"}),
        ("train-10171-0-0", "train/", {"directory": 17}),
        ("train-10171-0-0", "", {"directory": 17}),
        ("dev-850-3-1", "dev/", {}),
        ("test1-0-1-0", "test1/", {}),
        ("test1-0-1-0", "", {}),
    ],
)
def test_pairs_of_photographs_are_found_where_the_release_puts_them(tmp_path, identifier, folder, more) -> None:
    left, right = pair_names(identifier.rpartition("-")[0], folder)
    write_pictures(tmp_path, left, right)
    source = open_nlvr(tmp_path, [judged(identifier, **more)])
    assert examples(source) == [
        {
            "id": identifier,
            "image": left.encode(),
            "image2": right.encode(),
            "captions": ["Both show a dog."],
            "label": "True",
        }
    ]


def test_pairs_of_photographs_are_read_from_albefs_list(tmp_path: Path) -> None:
    names = [pair_names(f"dev-850-{pair}", "dev/") for pair in range(2)]
    write_pictures(tmp_path, *names[0], *names[1])
    said = [(0, "a", "True"), (0, "b", "False"), (1, "b", "True"), (1, "a", False)]
    rows = [
        {"images": [f"images/{name}" for name in names[pair]], "sentence": text, "label": label}
        for pair, text, label in said
    ]
    (tmp_path / "nlvr_dev.json").write_text(json.dumps(rows))
    found = examples(open_source(data_of("nlvr2", tmp_path, {"val": "nlvr_dev.json"}), "val", 32))
    assert [one["id"] for one in found] == ["dev-850-0-0", "dev-850-0-1", "dev-850-1-1", "dev-850-1-0"]
    assert [one["label"] for one in found] == ["True", "False", "True", "False"]
    assert found[3]["image2"] == names[1][1].encode()


def test_a_pair_of_which_one_photograph_is_missing_is_left_out(tmp_path: Path) -> None:
    write_pictures(tmp_path, *pair_names("dev-1-0"), *pair_names("dev-1-1")[:1])
    source = open_nlvr(tmp_path, [judged("dev-1-0-0"), judged("dev-1-1-0", "False")])
    assert len(source) == 1 and source.report == {"missing_pictures": 1, "rows_without_picture": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (judged("dev-1-0-0", "yes"), r"train.json row 1: the label 'yes' is none of False, True"),
        (judged("dev-1-0"), r"row 1: the identifier 'dev-1-0' is not SPLIT-SET-PAIR-SENTENCE"),
        (judged("../dev-1-0-0"), r"row 1: picture name '../dev-1-0-img0.png' is not a path inside"),
        ({"identifier": "dev-1-0-0", "sentence": "a"}, r"row 1: the key 'label' is missing"),
        ({"images": ["a.png"], "sentence": "a", "label": "True"}, r"row 1: images must be the names of two pictures"),
        (
            {"images": ["a.png", "b.png"], "sentence": "a", "label": "True"},
            r"'a.png' is not named SPLIT-SET-PAIR-img0.png",
        ),
    ],
)
def test_a_pair_that_is_wrong_is_named(tmp_path: Path, row: dict, message: str) -> None:
    write_pictures(tmp_path, *pair_names("dev-1-0"))
    with pytest.raises(UserError, match=message):
        open_nlvr(tmp_path, [row])


def test_two_pairs_of_one_identifier_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path, *pair_names("dev-1-0"))
    with pytest.raises(UserError, match=r"row 2: the id 'dev-1-0-0' is that of train.json row 1 too"):
        open_nlvr(tmp_path, [judged("dev-1-0-0"), judged("dev-1-0-0", "False")])
