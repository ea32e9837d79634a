"""The `refcoco` source: refer's files and lists of expressions, what is left out, and what each bad input says."""

import json
import pickle

import pytest

from maskvlm_jax.data.sources.refcoco import existing_splits, open_split
from maskvlm_jax.runtime.errors import UserError

NAMES = {7: "COCO_train2014_000000000007.jpg", 9: "COCO_train2014_000000000009.jpg"}
REFS = "refs(unc).json"


def ref(number, picture, annotation, split, *sentences):
    said = [{"sent_id": 10 * number + i, "sent": text, "raw": text, "tokens": []} for i, text in enumerate(sentences)]
    ids = {"ref_id": number, "ann_id": annotation, "image_id": picture, "category_id": 1}
    return {**ids, "split": split, "sentences": said, "file_name": f"{NAMES.get(picture)}_16.jpg", "sent_ids": []}


def write(path, document):
    path.write_text(json.dumps(document))


@pytest.fixture
def root(tmp_path):
    (tmp_path / "train2014").mkdir()
    for number, name in NAMES.items():
        (tmp_path / "train2014" / name).write_bytes(str(number).encode())
    refs = [
        ref(0, 7, 70, "testA", "left man", "Mann  mit Mütze"),
        ref(1, 9, 90, "train", "red cup"),
        ref(2, 7, 71, "testA", "the dog", "  "),
    ]
    write(tmp_path / REFS, refs)
    images = [{"id": i, "file_name": name, "height": 30, "width": 40} for i, name in NAMES.items()]
    boxes = {70: [1.5, 2, 10, 20], 71: [20, 5, 4, 4.25], 90: [0, 0, 40, 30]}
    annotations = [{"id": i, "image_id": 0, "bbox": box, "category_id": 1} for i, box in boxes.items()]
    write(tmp_path / "instances.json", {"images": images, "annotations": annotations, "categories": []})
    write(tmp_path / "dets.json", {"7": [[1, 2, 3, 4, 0.9], [5, 6, 7, 8, 0.5]], "8": []})
    return tmp_path


def open_set(root, split="testA", **changes):
    data = {"root": str(root), "images": "train2014", "captions": REFS, "splits": {}, "max_missing": 0.05}
    return open_split(data | changes, split, image_size=32)


def contents(source):
    return [source[i] for i in range(len(source))]


def test_refer_s_files_give_an_example_an_expression(root):
    source = open_set(root)
    first, second, third = contents(source)
    assert first == {
        "id": "0/0",
        "image": b"7",
        "captions": ["left man"],
        "box": (1.5, 2, 11.5, 22),
        "size": (30, 40),
        "candidates": [(1, 2, 4, 6), (5, 6, 12, 14)],
    }
    assert (second["captions"], third["box"]) == (["Mann mit Mütze"], (20, 5, 24, 9.25))
    assert source.report == {"empty_expressions": 1} and source.captions(2) == ["the dog"]
    assert [one["captions"] for one in contents(open_set(root, "train"))] == [["red cup"]]
    assert existing_splits({"root": str(root), "splits": {}, "captions": REFS, "split": ""}) == ["testA", "train"]


def test_without_detections_there_is_nothing_to_choose_from(root):
    (root / "dets.json").unlink()
    assert open_set(root)[0]["candidates"] == []


def test_detections_may_be_objects_with_a_box(root):
    write(root / "dets.json", {"7": [{"box": [1, 2, 3, 4], "score": 0.3}]})
    assert open_set(root)[0]["candidates"] == [(1, 2, 4, 6)]


def test_lists_of_expressions_train_and_with_a_box_are_scored(root):
    picture = f"train2014/{NAMES[7]}"
    write(
        root / "train.json",
        [{"image": picture, "text": "left man", "ref_id": 4}, {"image": picture, "text": ["a", "b"]}],
    )
    entry = {"image": picture, "text": "dog", "ref_id": "5", "bbox": [1, 2, 3, 4], "width": 40, "height": 30}
    write(root / "test.json", [entry | {"split": "testA"}, entry | {"split": "testB", "text": "cat"}])
    train = open_set(root, "train", images="", captions="train.json")
    assert [(one["id"], one["captions"]) for one in contents(train)] == [
        ("4/0", ["left man"]),
        (f"{picture}/0", ["a"]),
        (f"{picture}/1", ["b"]),
    ]
    assert "box" not in train[0] and train[0]["candidates"] == [(1, 2, 4, 6), (5, 6, 12, 14)]
    test = open_set(root, "testB", images="", splits={"testA": "test.json", "testB": "test.json"})
    assert [(one["captions"], one["box"], one["size"]) for one in contents(test)] == [(["cat"], (1, 2, 4, 6), (30, 40))]


def test_pickles_are_refused_whatever_they_are_called(root):
    class Bad:
        def __reduce__(self):
            return (exit, (3,))

    (root / "refs(unc).p").write_bytes(pickle.dumps(Bad(), protocol=0))
    (root / "odd.json").write_bytes(pickle.dumps(Bad()))
    line = r"is a pickle, which can run anything and is not read; .* python -c .import json, .*'refs\(unc\)\.json'"
    with pytest.raises(UserError, match=line):
        open_set(root, captions="refs(unc).p")
    with pytest.raises(UserError, match="is a pickle"):
        open_set(root, captions="odd.json")


def test_what_the_refusal_says_makes_a_file_that_is_read(root):
    refs = json.loads((root / REFS).read_text())
    (root / REFS).unlink()
    (root / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    with pytest.raises(UserError) as told:
        open_set(root, captions="refs(unc).p")
    command = str(told.value).split('python -c "')[1].split('"')[0]
    exec(command.replace("'refs", f"'{root}/refs"), {})
    assert len(open_set(root)) == 3


def test_missing_pictures_are_counted_up_to_the_share_that_is_allowed(root):
    refs = json.loads((root / REFS).read_text())
    refs += [ref(3, 9, 90, "testA", "cup", "the cup")]
    write(root / REFS, refs)
    (root / "train2014" / NAMES[9]).unlink()
    with pytest.raises(UserError, match="1 of 2 pictures of the split are not in"):
        open_set(root)
    source = open_set(root, max_missing=0.5)
    assert len(source) == 3
    assert source.report == {"missing_pictures": 1, "expressions_of_missing_pictures": 2, "empty_expressions": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda refs: refs.append(refs[0]), r"refs\(unc\)\.json row 4: 0/0 is there twice"),
        (lambda refs: refs[1].update(image_id=8), r"row 2: instances\.json has no image_id 8; take both"),
        (lambda refs: refs[1].update(ann_id=8), r"row 2: instances\.json has no ann_id 8"),
        (lambda refs: refs[1].pop("split"), r"row 2: the key 'split' is missing"),
        (lambda refs: refs[2]["sentences"][0].update(sent=4), r"row 3: 'sent' has the wrong type: int"),
        (lambda refs: refs.insert(1, "x"), r"row 2: a JSON object is expected, not str"),
    ],
)
def test_a_wrong_row_of_refs_is_named(root, change, message):
    refs = json.loads((root / REFS).read_text())
    change(refs)
    write(root / REFS, refs)
    with pytest.raises(UserError, match=message):
        open_set(root)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"text": "a"}, "row 1: the key 'image' is missing"),
        ({"image": "a.jpg"}, "row 1: the key 'text' is missing"),
        ({"image": "a.jpg", "text": 3}, "row 1: 'text' has the wrong type: int"),
        ({"image": "a.jpg", "text": ["a", 3]}, "row 1: text must be a text or a list of texts"),
        ({"image": "../a.jpg", "text": "a"}, "row 1: picture name '../a.jpg' is not a path inside"),
        ({"image": "a.jpg", "text": "a", "bbox": [1, 2, 3, 4]}, "row 1: there is a bbox, and no width and height"),
        ({"image": "a.jpg", "text": "a", "bbox": [1, 2, "3", 4]}, "row 1: the box .* is not .x, y, width, height. in"),
        ({"image": "a.jpg", "text": "a", "bbox": [1, 2, 0, 4]}, "row 1: the box .* has no area"),
        ({"image": "a.jpg", "text": "a", "bbox": [1, float("nan"), 3, 4]}, "row 1: the box .* is not"),
    ],
)
def test_a_wrong_row_of_a_list_is_named(root, entry, message):
    write(root / "list.json", [entry])
    with pytest.raises(UserError, match=message):
        open_set(root, captions="list.json")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (REFS, "{", r"refs\(unc\)\.json: invalid JSON"),
        (REFS, "{}", "a list is expected, not dict; give refs or expressions"),
        (REFS, "[]", "has no expression of the split 'testA'; its splits are none"),
        ("instances.json", "[]", "instances.json: a JSON object is expected"),
        ("dets.json", "[]", "dets.json: an object of picture numbers is expected, not list"),
        ("dets.json", '{"a": []}', "dets.json: 'a' is no number of a picture"),
        ("dets.json", '{"7": [[1, 2, 3]]}', "dets.json 7: the box .* is not"),
    ],
)
def test_a_wrong_file_is_named(root, file, content, message):
    (root / file).write_text(content)
    with pytest.raises(UserError, match=message):
        open_set(root)


def test_what_is_not_there_is_named(root):
    with pytest.raises(UserError, match="no expression of the split 'testC'; its splits are testA, train"):
        open_set(root, "testC")
    with pytest.raises(UserError, match=r"no split 'val' in --config\.data\.splits; choose from train"):
        open_set(root, "val", splits={"train": "a.json"})
    with pytest.raises(UserError, match="no such picture folder"):
        open_set(root, images="val2014")
    with pytest.raises(UserError, match="the file of expressions cannot be read"):
        open_set(root, captions="none.json")
    (root / "instances.json").unlink()
    with pytest.raises(UserError, match="the file of boxes cannot be read"):
        open_set(root)
