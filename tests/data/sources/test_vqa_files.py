"""The files of VQA v2 as they are released, small ones."""

import json

import pytest

from maskvlm_jax.data.sources import vqa
from maskvlm_jax.data.sources.opening import existing_splits, open_source
from maskvlm_jax.runtime.errors import UserError
from tests.data.sources.vqa_files import annotation_of, questions_of, write

DATA = {
    "source": "vqa",
    "images": "",
    "split": "train",
    "splits": vqa.SUBSETS,
    "max_missing": 0.05,
    "clean": "none",
    "mixture": {},
}


@pytest.fixture
def root(tmp_path):
    for subset, images in (("train2014", range(1, 7)), ("val2014", range(11, 14))):
        questions = questions_of(images)
        write(tmp_path, subset, questions, [annotation_of(question) for question in questions])
    write(tmp_path, "test-dev2015", questions_of(range(21, 23)))
    return tmp_path


def opened(root, split="train", **changes):
    return open_source(DATA | {"root": str(root)} | changes, split, 32)


def test_every_question_is_an_example_with_its_ten_answers(root):
    source = opened(root)
    assert len(source) == 12 and source.report == {}
    example = source[1]
    assert example.pop("image") == (root / "train2014" / "COCO_train2014_000000000001.jpg").read_bytes()
    assert example == {
        "id": "1001",
        "question_id": 1001,
        "captions": ["What is it, 1 1?"],
        "answers": ("yes",) * 7 + ("no",) * 3,
        "answer": "yes",
        "question_type": "is it",
        "answer_type": "yes/no",
    }
    assert source.facts(1) == example and len({source.id(i) for i in range(12)}) == 12


def test_splits_of_several_subsets_hold_all_of_them(root):
    source = opened(root, splits={"train": "train2014+val2014"})
    assert [source.id(i) for i in (0, 12)] == ["1000", "11000"]
    assert source[12]["image"] == (root / "val2014" / "COCO_val2014_000000000011.jpg").read_bytes()


def test_questions_of_a_test_have_no_answers_and_the_pictures_of_the_whole_test(root):
    source = opened(root, "test-dev")
    assert source[0]["answers"] == () and source[0]["answer_type"] == ""
    assert source[3]["image"] == (root / "test2015" / "COCO_test2015_000000000022.jpg").read_bytes()
    assert set(existing_splits(DATA | {"root": str(root)})) == {"train", "val", "test-dev"}


def test_pictures_may_lie_in_one_folder(tmp_path):
    questions = questions_of([1])
    write(tmp_path, "train2014", questions, [annotation_of(q) for q in questions], folder="all")
    assert opened(tmp_path, images="all")[0]["image"]


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path):
    questions = questions_of(range(1, 31))
    questions[3]["question"], questions[5]["question"] = " \n", "half a letter \ud800"
    write(tmp_path, "train2014", questions, [annotation_of(q) for q in questions[2:]])
    (tmp_path / "train2014" / "COCO_train2014_000000000030.jpg").unlink()
    source = opened(tmp_path)
    assert source.report == {
        "questions_without_answers": 2,
        "missing_pictures": 1,
        "questions_without_picture": 2,
        "empty_questions": 2,
    }
    assert len(source) == 60 - 6 and source.id(0) == "2000"


def test_a_picture_that_cannot_be_read_is_empty(root):
    source = opened(root)
    (root / "train2014" / "COCO_train2014_000000000001.jpg").unlink()
    assert source[0]["image"] == b""


def test_answers_are_any_text(tmp_path):
    questions = questions_of([1])
    odd = ["café ☕", "", "[MASK]", "A" * 500, "‮x", "½", "one\ntwo", "\u0000", "yes", "yes"]
    write(tmp_path, "train2014", questions, [annotation_of(q, odd) for q in questions])
    assert list(opened(tmp_path)[0]["answers"]) == odd


def broken(root, key, change):
    """A train2014 of which one row is changed."""
    questions = questions_of([1, 2])
    rows = {"questions": questions, "annotations": [annotation_of(q) for q in questions]}
    write(root, "train2014", questions, rows["annotations"])
    rows[key][1] = change(rows[key][1])
    name = {"questions": "v2_OpenEnded_mscoco_train2014_questions", "annotations": "v2_mscoco_train2014_annotations"}[
        key
    ]
    (root / f"{name}.json").write_text(json.dumps({key: rows[key]}))


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("questions", lambda row: row | {"question_id": 1000}, r"row 2: question_id 1000 is that of v2_.* row 1 too"),
        ("questions", lambda row: row | {"question_id": "1"}, r"row 2: 'question_id' has the wrong type: str"),
        ("questions", lambda row: row | {"image_id": -1}, r"row 2: image_id is -1; it must be a whole number"),
        ("questions", lambda row: row | {"image_id": True}, r"row 2: image_id is True; it must be a whole number"),
        ("questions", lambda row: row | {"question": ["what"]}, r"row 2: 'question' has the wrong type: list"),
        ("questions", lambda row: "what", r"row 2: a JSON object is expected, not str"),
        ("questions", lambda row: {"question_id": 5}, r"row 2: the key 'image_id' is missing"),
        ("annotations", lambda row: row | {"question_id": 1000}, r"annotations.json row 2: question_id 1000 is used t"),
        ("annotations", lambda row: row | {"answers": "yes"}, r"row 2: 'answers' has the wrong type: str"),
        ("annotations", lambda row: row | {"answers": ["yes"]}, r"row 2: a JSON object is expected, not str"),
        ("annotations", lambda row: row | {"answers": [{"answer": 2}]}, r"row 2: 'answer' has the wrong type: int"),
        ("annotations", lambda row: row | {"answer_type": None}, r"row 2: 'answer_type' has the wrong type: NoneType"),
    ],
)  # fmt: skip
def test_a_row_that_is_wrong_is_named(tmp_path, key, change, message):
    broken(tmp_path, key, change)
    with pytest.raises(UserError, match=message) as error:
        opened(tmp_path)
    assert "\n" not in str(error.value)


def test_files_that_are_wrong_are_named(root):
    path = root / "v2_OpenEnded_mscoco_train2014_questions.json"
    for content, message in (
        (b"[]", "a JSON object is expected, not list"),
        (b'{"questions": {}}', "'questions' has the wrong type: dict"),
        (b"{", "invalid JSON"),
        (b'{"questions": []}', "no question can be used"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            opened(root)
    path.unlink()
    with pytest.raises(UserError, match="question file cannot be read"):
        opened(root)


def test_what_is_trained_on_needs_its_answers(root):
    (root / "v2_mscoco_train2014_annotations.json").unlink()
    with pytest.raises(UserError, match=r"v2_mscoco_train2014_annotations\.json: no such file; questions are"):
        opened(root)
    assert opened(root, split="val")[0]["answers"]  # what is scored needs none, and has them where they are


def test_too_many_missing_pictures_are_an_error_that_names_one(root):
    (root / "val2014" / "COCO_val2014_000000000012.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 3 pictures .*first: val2014/COCO_val2014_000000000012.jpg"):
        opened(root, "val")
    assert len(opened(root, "val", max_missing=0.5)) == 4


def test_a_split_that_is_not_there_is_named(root):
    with pytest.raises(UserError, match=r"there is no split 'novel' in .*; choose from test, test-dev, train, val"):
        opened(root, "novel")


def test_the_same_files_have_the_same_fingerprint(root):
    before = opened(root).fingerprint
    assert before == opened(root).fingerprint != opened(root, "val").fingerprint
    path = root / "v2_mscoco_train2014_annotations.json"
    told = json.loads(path.read_text())
    told["annotations"][0]["answers"][0]["answer"] += " indeed"
    path.write_text(json.dumps(told))
    assert opened(root).fingerprint != before
