"""The `files` source: the caption formats, what is left out and counted, and what each bad input says."""

import json
import pickle
from pathlib import Path

import pytest

from maskvlm_jax.data.sources.files import Files, existing_splits
from maskvlm_jax.runtime.errors import UserError

LISTS = {"train": "train.txt", "val": "val.txt"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three pictures with two captions each, as CSV and split lists."""
    (tmp_path / "Images").mkdir()
    for name in "abc":
        (tmp_path / "Images" / f"{name}.jpg").write_bytes(name.encode())
    rows = ['a.jpg,"A dog, running ."', "b.jpg,Two  cats", "a.jpg, A \t dog", "c.jpg,A tree", "b.jpg,cats!", "c.jpg,x"]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *rows, ""]))
    (tmp_path / "train.txt").write_text("c.jpg\na.jpg\n")
    (tmp_path / "val.txt").write_text("b.jpg\n")
    return tmp_path


def open_files(folder: Path, **changes) -> Files:
    arguments = {"root": str(folder), "images": "Images", "captions": "captions.csv", "split": "train", "splits": LISTS}
    return Files(**(arguments | changes))


def contents(source: Files) -> dict[str, list[str]]:
    return {source.id(i): source.captions(i) for i in range(len(source))}


def write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document))


def test_csv_with_split_lists(root: Path) -> None:
    train, val = open_files(root), open_files(root, split="val")
    assert list(contents(train)) == ["c.jpg", "a.jpg"], "the order is that of the list"
    assert contents(train) == {"c.jpg": ["A tree", "x"], "a.jpg": ["A dog, running .", "A dog"]}
    assert contents(val) == {"b.jpg": ["Two cats", "cats!"]}
    assert train.report == {} and val.report == {}
    assert train[1] == {"id": "a.jpg", "image": b"a", "captions": ["A dog, running .", "A dog"]}
    with pytest.raises(IndexError):
        train[2]


def test_splits_with_files_of_their_own_are_those_that_are_there(root: Path) -> None:
    data = {"source": "files", "root": str(root), "images": "Images", "captions": "captions_{split}.csv"}
    data |= {"splits": {"train": "train", "val": "validation", "test": "test"}, "split": "train"}
    for name in ("train", "validation"):
        (root / f"captions_{name}.csv").write_text("image,caption\na.jpg,A dog\n")
    assert list(existing_splits(data)) == ["train", "val"]
    assert list(existing_splits(data | {"splits": {}})) == ["train"]


@pytest.mark.parametrize("name", ["captions.json", "captions.jsonl", "captions.txt"])
def test_columns_are_named_of_tables_alone(root: Path, name: str) -> None:
    (root / name).write_text('{"a.jpg": "A dog"}' if name.endswith("json") else "a\tA dog\n")
    with pytest.raises(UserError, match=rf"{name} is no table; leave --config\.data\.image_key"):
        open_files(root, captions=name, splits=None, caption_key="title")


def test_without_splits_all_pictures_are_the_split_in_file_order(root: Path) -> None:
    assert list(contents(open_files(root, splits=None, split="any"))) == ["a.jpg", "b.jpg", "c.jpg"]


def test_byte_order_mark_and_windows_line_ends(root: Path) -> None:
    text = (root / "captions.csv").read_text().replace("\n", "\r\n")
    expected = contents(open_files(root))
    (root / "captions.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (root / "train.txt").write_bytes(b"\xef\xbb\xbfc.jpg\r\n\r\na.jpg\r\n")
    assert contents(open_files(root)) == expected


def test_jsonl(root: Path) -> None:
    lines = [{"image": "b.jpg", "captions": ["one", "two"]}, {"image": "./a.jpg", "caption": "a\u2028b"}]
    lines.append({"image": "b.jpg", "caption": "three"})
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (root / "captions.jsonl").write_text(text + "\n\n", encoding="utf-8")
    source = open_files(root, captions="captions.jsonl", splits=None)
    assert contents(source) == {"b.jpg": ["one", "two", "three"], "a.jpg": ["a b"]}


def test_coco(root: Path) -> None:
    images = [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}, {"id": 4, "file_name": "c.jpg"}]
    annotations = [{"image_id": 3, "caption": "one"}, {"image_id": 7, "caption": "two"}, {"image_id": 3, "caption": ""}]
    write_json(root / "coco.json", {"images": images, "annotations": annotations})
    source = open_files(root, captions="coco.json", splits=None)
    assert contents(source) == {"b.jpg": ["two"], "a.jpg": ["one"]}
    assert source.report == {"empty_captions": 1, "pictures_without_captions": 1}


def karpathy(name: str, split: str, **more: str) -> dict:
    return {"filename": name, "split": split, "sentences": [{"raw": f"{name} one"}, {"raw": "two"}]} | more


def test_karpathy_splits_and_folders(root: Path) -> None:
    (root / "Images" / "val2014").mkdir()
    (root / "Images" / "val2014" / "d.jpg").write_bytes(b"d")
    images = [karpathy("b.jpg", "test"), karpathy("a.jpg", "train")]
    images.append(karpathy("d.jpg", "restval", filepath="val2014"))
    write_json(root / "dataset.json", {"images": images})
    train = open_files(root, captions="dataset.json", splits=None)
    assert contents(train) == {"a.jpg": ["a.jpg one", "two"], "val2014/d.jpg": ["d.jpg one", "two"]}
    assert train[1]["image"] == b"d"
    assert list(contents(open_files(root, captions="dataset.json", splits=None, split="test"))) == ["b.jpg"]
    with pytest.raises(UserError, match=r"no split 'val' in dataset\.json; choose from test, train"):
        open_files(root, captions="dataset.json", splits=None, split="val")


def test_what_is_left_out_is_counted(root: Path) -> None:
    (root / "captions.csv").write_text("image,caption\na.jpg,dog\na.jpg, \nb.jpg,\n\nmissing.jpg,gone\n")
    (root / "train.txt").write_text("b.jpg\na.jpg\nc.jpg\na.jpg\nmissing.jpg\n")
    source = open_files(root, max_missing=0.25)
    assert contents(source) == {"a.jpg": ["dog"]}
    assert source.report == {
        "repeated_pictures": 1,
        "missing_pictures": 1,
        "empty_captions": 2,
        "pictures_without_captions": 2,
    }


def test_too_many_missing_pictures(root: Path) -> None:
    (root / "Images" / "a.jpg").unlink()
    expected = r"1 of 2 pictures .* are not in .*Images \(first: a.jpg\).*--config.data.root or .*max_missing"
    with pytest.raises(UserError, match=expected):
        open_files(root, max_missing=0.49)
    assert list(contents(open_files(root, max_missing=0.5))) == ["c.jpg"]


def test_unreadable_picture_is_empty_bytes(root: Path) -> None:
    source = open_files(root)
    (root / "Images" / "c.jpg").unlink()
    assert source[0]["image"] == b""


def test_images_may_be_the_root_itself(root: Path) -> None:
    for name in "abc":
        (root / f"{name}.jpg").write_bytes(b"")
    assert len(open_files(root, images="")) == 2


def test_pickle_and_fingerprint(root: Path) -> None:
    source = open_files(root)
    again = pickle.loads(pickle.dumps(source))
    assert contents(again) == contents(source) and again[0] == source[0]
    assert source.fingerprint == again.fingerprint == open_files(root).fingerprint
    assert len(source.fingerprint) == 64
    assert source.fingerprint != open_files(root, split="val").fingerprint
    (root / "train.txt").write_text("a.jpg\nc.jpg\n")
    assert source.fingerprint != open_files(root).fingerprint, "order is part of it"


def test_callers_cannot_change_the_captions(root: Path) -> None:
    source = open_files(root)
    source.captions(0).append("more")
    source[0]["captions"].clear()
    assert source.captions(0) == ["A tree", "x"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "/no/such/folder"}, "data root '/no/such/folder' is not a folder; set --config.data.root="),
        ({"root": ""}, "data root '' is not a folder; set --config.data.root="),
        ({"images": "Pictures"}, "Pictures: no such picture folder"),
        ({"captions": "gone.csv"}, r"gone.csv: the caption file cannot be read \(No such file"),
        ({"captions": "captions.xml"}, "captions.xml: caption files end in .csv, .txt, .jsonl, .json"),
        ({"splits": {"train": "gone.txt"}}, r"gone.txt: the split list cannot be read \(No such file"),
        ({"split": "test"}, "no split 'test' in --config.data.splits; choose from train, val"),
    ],
)
def test_wrong_paths_and_splits(root: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_files(root, **changes)


COCO_IMAGE = '"images": [{"id": 1, "file_name": "a.jpg"}]'


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("captions.csv", "", "captions.csv row 1: the header is '';"),
        ("captions.csv", "picture,text\na.jpg,x\n", "captions.csv row 1: the header is 'picture,text'; it must be"),
        ("captions.csv", "image,caption\na.jpg,x\na.jpg,a dog, running\n", "captions.csv row 3: 3 columns"),
        ("captions.csv", "image,caption\na.jpg\n", "captions.csv row 2: 1 columns"),
        ("captions.csv", 'image,caption\na.jpg,"never closed\n', "captions.csv row 2: unexpected end of data"),
        ("captions.csv", b"image,caption\na.jpg,x\na.jpg,\xff\n", "captions.csv row 3: not UTF-8"),
        ("captions.csv", "image,caption\n../a.jpg,x\n", "captions.csv row 2: picture name '../a.jpg' is not a path"),
        ("captions.csv", "image,caption\nx/../../a.jpg,x\n", "row 2: picture name"),
        ("captions.csv", "image,caption\n/etc/passwd,x\n", "row 2: picture name '/etc/passwd'"),
        ("captions.csv", "image,caption\n,x\n", "row 2: picture name ''"),
        ("captions.csv", "image,caption\n", "captions.csv: no picture of split 'train' has a caption"),
        ("train.txt", "a.jpg\n..\n", "train.txt row 2: picture name '..'"),
        ("train.txt", "\n", "no picture of split 'train' has a caption"),
        ("c.jsonl", '{"image": "a.jpg", "caption": "x"}\n{"image"\n', "c.jsonl row 2: invalid JSON"),
        ("c.jsonl", '{"image": "a.jpg"}', "c.jsonl row 1: the key 'caption' is missing; there are image"),
        ("c.jsonl", '{"caption": "x"}', "c.jsonl row 1: the key 'image' is missing"),
        ("c.jsonl", '["a.jpg", "x"]', "c.jsonl row 1: a JSON object is expected, not list"),
        ("c.jsonl", '{"image": "a.jpg", "captions": "x"}', "c.jsonl row 1: 'captions' has the wrong type: str"),
        ("c.jsonl", '{"image": "a.jpg", "captions": [1]}', "c.jsonl row 1: captions must be a list of strings"),
        ("c.json", "[1,", "c.json: invalid JSON"),
        ("c.json", "{}", "c.json: the key 'images' is missing; there are none"),
        ("c.json", f'{{{COCO_IMAGE}, "annotations": [{{"image_id": 1}}]}}', "c.json annotations row 1: the key 'capt"),
        ("c.json", f'{{{COCO_IMAGE}, "annotations": [{{"image_id": 2}}]}}', "annotations row 1: image_id 2 is not"),
        ("c.json", '{"images": [{"id": 1}], "annotations": []}', "c.json images row 1: the key 'file_name' is missing"),
        ("c.json", '{"images": [{"filename": "a.jpg"}]}', "c.json images row 1: the key 'split' is missing"),
    ],
)
def test_malformed_files(root: Path, file: str, content: str | bytes, message: str) -> None:
    (root / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    captions = "captions.csv" if file == "train.txt" else file
    with pytest.raises(UserError, match=message) as caught:
        open_files(root, captions=captions)
    assert "\n" not in str(caught.value)


def test_coco_ids_must_differ(root: Path) -> None:
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]
    write_json(root / "coco.json", {"images": images, "annotations": []})
    with pytest.raises(UserError, match=r"coco\.json images row 2: id 1 is used twice"):
        open_files(root, captions="coco.json", splits=None)


def visual_genome(root: Path, regions: list | None = None, image_data: list | None = None) -> Files:
    """Opens two pictures with regions; the third has none, and a fourth is in image_data.json only."""
    address = "https://example.org/pictures/VG_100K/{}.jpg?size=full"
    (root / "VG_100K").mkdir(exist_ok=True)
    for number in (1, 2, 3, 4):
        (root / "VG_100K" / f"{number}.jpg").write_bytes(b"%d" % number)
    if regions is None:
        phrases = [{"image_id": 2, "phrase": "a red  hat"}, {"image_id": 2, "phrase": "the sky"}]
        regions = [{"id": 2, "regions": phrases}, {"image_id": 1, "regions": phrases[:1]}, {"id": 3, "regions": []}]
    if image_data is None:
        image_data = [{"image_id": number, "url": address.format(number)} for number in (1, 2, 3, 4)]
    write_json(root / "region_descriptions.json", regions)
    write_json(root / "image_data.json", image_data)
    return open_files(root, images="", captions="region_descriptions.json", splits=None)


def test_visual_genome_regions_are_captions_of_their_picture(root: Path) -> None:
    source = visual_genome(root)
    assert contents(source) == {"VG_100K/2.jpg": ["a red hat", "the sky"], "VG_100K/1.jpg": ["a red hat"]}
    assert source[0]["image"] == b"2" and source.report == {"pictures_without_captions": 1}


def test_visual_genome_needs_image_data_beside_it(root: Path) -> None:
    visual_genome(root)
    (root / "image_data.json").unlink()
    message = (
        r"image_data\.json: no such file; region_descriptions\.json needs it for the names of its pictures, put it"
    )
    with pytest.raises(UserError, match=message):
        open_files(root, images="", captions="region_descriptions.json", splits=None)
    (root / "image_data.json").write_text("{}")
    with pytest.raises(UserError, match=r"image_data\.json: a JSON list is expected, not dict"):
        open_files(root, images="", captions="region_descriptions.json", splits=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"regions": [{"id": 9, "regions": []}]},
            "region_descriptions.json row 1: picture 9 is not in image_data.json",
        ),
        ({"regions": [{"id": 1}]}, "region_descriptions.json row 1: the key 'regions' is missing; there are id"),
        ({"regions": [{"regions": []}]}, "region_descriptions.json row 1: the key 'id' is missing; there are regions"),
        ({"regions": [7]}, "region_descriptions.json row 1: a JSON object is expected, not int"),
        ({"regions": [{"id": 1, "regions": [{}]}]}, "region_descriptions.json row 1: the key 'phrase' is missing"),
        ({"regions": [{"id": 1, "regions": [{"phrase": 1}]}]}, "row 1: 'phrase' has the wrong type: int"),
        ({"image_data": [{"image_id": 1}]}, "image_data.json row 1: the key 'url' is missing; there are image_id"),
        ({"image_data": [{"image_id": 1, "url": "x/1.jpg"}] * 2}, "image_data.json row 2: image_id 1 is used twice"),
        ({"image_data": [{"image_id": 1, "url": "x/../1"}]}, "row 1: picture name '../1' is not a path inside"),
        ({"image_data": [{"image_id": 1, "url": "http://[1/2"}]}, r"row 1: 'http://\[1/2' is not an address: Invalid"),
    ],
)
def test_malformed_visual_genome(root: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        visual_genome(root, **changes)
    assert "\n" not in str(caught.value)


def test_sbu_pictures_are_named_by_the_end_of_their_address(root: Path) -> None:
    addresses = ["http://example.org/2723/b.jpg", "http://example.org/4/a.jpg", "http://example.org/5/b.jpg"]
    write_json(root / "sbu.json", {"image_urls": addresses, "captions": ["one", "two", "three"]})
    assert contents(open_files(root, captions="sbu.json", splits=None)) == {"b.jpg": ["one", "three"], "a.jpg": ["two"]}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"image_urls": ["x"]}, r"sbu\.json: the key 'captions' is missing; there are image_urls"),
        ({"image_urls": "x", "captions": []}, r"sbu\.json: 'image_urls' has the wrong type: str"),
        ({"image_urls": ["x"], "captions": []}, r"sbu\.json: 1 image_urls but 0 captions; take the file anew"),
        ({"image_urls": ["x"], "captions": [1]}, r"sbu\.json row 1: image_urls and captions must be strings"),
        ({"image_urls": ["http://x/"], "captions": ["a"]}, r"sbu\.json row 1: picture name '' is not a path"),
    ],
)
def test_malformed_sbu(root: Path, document: dict, message: str) -> None:
    write_json(root / "sbu.json", document)
    with pytest.raises(UserError, match=message):
        open_files(root, captions="sbu.json", splits=None)
