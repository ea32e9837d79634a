"""The `tfds` source: sets of tensorflow-datasets as ArrayRecord files, read without TensorFlow."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from maskvlm_jax.data.sources.tfds import Tfds
from maskvlm_jax.runtime.errors import UserError
from tests.conftest import ROOT
from tests.data.sources.tfds_sets import make_set

TRAIN = "toy-train.array_record-00000-of-00001"


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGE, TEXT, SEQUENCE = tfds.features.Image, tfds.features.Text, tfds.features.Sequence


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with the features of `coco_captions`, and its words as they come; 20 and 4 examples."""
    features = {
        "image": IMAGE(),
        "image/filename": TEXT(),
        "image/id": np.int64,
        "captions": SEQUENCE({"id": np.int64, "text": TEXT()}),
        "objects": SEQUENCE({"bbox": tfds.features.BBoxFeature()}),
    }

    def example(number: int) -> dict:
        return {
            "image": png(number),
            "image/filename": f"{number:03d}.png",
            "image/id": number,
            "captions": [{"id": k, "text": f" Bäume\n{number} {k}"} for k in range(number % 3)],
            "objects": [{"bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0)}],
        }

    examples = {"train": [example(k) for k in range(20)], "val": [example(k) for k in range(20, 24)]}
    return make_set(tmp_path_factory.mktemp("tfds"), features, examples)


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A set that a test may damage."""
    shutil.copytree(made, tmp_path / "toy/1.0.0")
    return tmp_path / "toy/1.0.0"


def open_set(folder: Path, **changes) -> Tfds:
    return Tfds(**({"root": str(folder), "split": "train"} | changes))


def captions_of(number: int) -> list[str]:
    return [f"Bäume {number} {k}" for k in range(number % 3)]


def test_examples_with_encoded_pictures_and_all_captions(made: Path) -> None:
    source = open_set(made)
    assert len(source) == 20 and source.report == {}
    for number in range(20):
        expected = {"id": f"{number:03d}.png", "image": png(number), "captions": captions_of(number)}
        assert source[number] == expected
        assert source.id(number) == expected["id"] and source.captions(number) == expected["captions"]
    for index in (20, -1):
        with pytest.raises(IndexError):
            source[index]


def test_parts_of_splits(made: Path) -> None:
    assert [open_set(made, split="train[50%:60%]")[i]["image"] for i in range(2)] == [png(10), png(11)]
    assert len(open_set(made, split="train+val")) == 24


def test_root_may_be_a_folder_above_the_only_set(made: Path) -> None:
    for root in (made.parent, made.parent.parent):
        assert open_set(root)[3] == open_set(made)[3]


CAPTION_FEATURES = [
    ("caption", TEXT(), "one", ["one"]),
    ("text", SEQUENCE(TEXT()), ["one", " two", ""], ["one", "two"]),
    ("sentence", np.str_, "one", ["one"]),
]


@pytest.mark.parametrize(("name", "feature", "written", "captions"), CAPTION_FEATURES)
def test_captions_are_a_text_or_a_list_of_texts(
    tmp_path: Path, name: str, feature: object, written: object, captions: list[str]
) -> None:
    features = {"picture": IMAGE(), name: feature, "label": np.int64}
    folder = make_set(tmp_path, features, {"train": [{"picture": png(1), name: written, "label": 3}]})
    assert open_set(folder)[0] == {"id": "train/0", "image": png(1), "captions": captions}
    assert open_set(folder).id(0) == "train/0"
    with pytest.raises(IndexError):
        open_set(folder).id(1)


def test_features_can_be_named(tmp_path: Path) -> None:
    features = {"id": np.int64, "a": IMAGE(), "b": IMAGE(), "x": TEXT(), "y": {"z": TEXT()}}
    folder = make_set(tmp_path, features, {"train": [{"id": 7, "a": png(1), "b": png(2), "x": "x", "y": {"z": "z"}}]})
    source = open_set(folder, image_key="b", caption_key="y/z")
    assert source[0] == {"id": "7", "image": png(2), "captions": ["z"]}
    with pytest.raises(UserError, match=r"no name tells which is the image_key; .*image_key to one of a, b"):
        open_set(folder, caption_key="x")
    with pytest.raises(UserError, match=r"no name tells which is the caption_key; .*caption_key to one of x, y/z"):
        open_set(folder, image_key="a")


def test_tensorflow_is_never_imported_and_a_pickle_reads_in_another_process(made: Path, tmp_path: Path) -> None:
    source = open_set(made)
    source[0]
    (tmp_path / "source").write_bytes(pickle.dumps(source))
    command = [sys.executable, "-m", "tests.data.sources.tfds_in_a_process", tmp_path / "source", made]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert process.stdout == "005.png|Bäume 5 0|Bäume 5 1\n", process.stderr


def test_many_threads_read_in_any_order(made: Path) -> None:
    source = open_set(made)
    with ThreadPoolExecutor(16) as pool:
        examples = list(pool.map(source.__getitem__, [i * 7 % 20 for i in range(400)]))
    assert [example["image"] for example in examples] == [png(i * 7 % 20) for i in range(400)]


def test_fingerprint_is_of_the_files_and_not_of_the_place(made: Path, copy: Path) -> None:
    fingerprint = open_set(made).fingerprint
    assert open_set(copy).fingerprint == fingerprint and len(fingerprint) == 64
    assert open_set(made, split="val").fingerprint != fingerprint
    assert open_set(made, split="train[:50%]").fingerprint != fingerprint
    assert open_set(made, caption_key="image/filename").fingerprint != fingerprint
    with (copy / TRAIN).open("ab") as file:
        file.write(b"x")
    assert open_set(copy).fingerprint != fingerprint


def test_records_that_cannot_be_read_are_empty(copy: Path) -> None:
    whole = (copy / TRAIN).read_bytes()
    damaged = bytearray(whole)
    damaged[200 : len(whole) // 2 : 97] = bytes(len(damaged[200 : len(whole) // 2 : 97]))
    for content in (b"", whole[: len(whole) // 2], bytes(damaged)):
        source = open_set(copy)
        (copy / TRAIN).write_bytes(content)
        assert source[7] == {"id": "train/7", "image": b"", "captions": []}
        assert source.captions(7) == []


def change_info(folder: Path, **changes) -> None:
    told = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(told | changes))


def test_another_file_format_is_refused_and_one_beside_array_record_is_not(copy: Path) -> None:
    change_info(copy, fileFormat="tfrecord", alternativeFileFormats=["array_record"])
    assert open_set(copy)[3]["image"] == png(3)
    change_info(copy, fileFormat="tfrecord", alternativeFileFormats=[])
    message = (
        "1.0.0: the set was prepared as tfrecord, which cannot be read at random; convert it where TensorFlow is: "
        r"tfds convert_format --dataset_version_dir=.*1\.0\.0 --out_file_format=array_record"
    )
    with pytest.raises(UserError, match=message):
        open_set(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "/no/such/folder"}, "data root '/no/such/folder' is not a folder; set --config.data.root="),
        ({"root": ""}, "data root '' is not a folder"),
        ({"split": "test"}, "1.0.0: there is no split 'test', or nothing in it; choose from train, val"),
        ({"split": "train[:0]"}, r"there is no split 'train\[:0\]', or nothing in it"),
        ({"split": "train["}, "there is no split 'train"),
        (
            {"image_key": "photo"},
            r"'photo' is not there .* set --config.data.image_key to one of image \(there are capt",
        ),
        ({"caption_key": "captions"}, "'captions' is not there .*caption_key to one of captions/text, image/filename"),
    ],
)
def test_wrong_roots_splits_and_features(made: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_set(made, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "dataset_info.json",
            None,
            "no set of tensorflow-datasets is there, which has a dataset_info.json; prepare one",
        ),
        ("dataset_info.json", "{", r"1.0.0: the set cannot be opened \(.*\); prepare it anew"),
        ("dataset_info.json", "{}", r"1.0.0: the set cannot be opened \(.*\); prepare it anew"),
        ("features.json", None, r"1.0.0: the set cannot be opened \(.*\); prepare it anew"),
        ("features.json", "{", r"1.0.0: the set cannot be opened \(.*\); prepare it anew"),
        (TRAIN, None, rf"{TRAIN}: the file cannot be read \(No such file or directory\); prepare it anew"),
    ],
)
def test_damaged_sets(copy: Path, file: str, content: str | None, message: str) -> None:
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        open_set(copy)
    assert "\n" not in str(caught.value)


def test_several_sets_below_the_root(copy: Path) -> None:
    shutil.copytree(copy, copy.parent / "2.0.0")
    with pytest.raises(UserError, match=r"toy: there are several sets \(1\.0\.0, 2\.0\.0\); set --config.data.root to"):
        open_set(copy.parent)


def test_features_that_fields_read_are_in_the_examples_and_classes_are_captions(tmp_path: Path) -> None:
    features = {"image": IMAGE(), "label": tfds.features.ClassLabel(names=["cat", "red panda"]), "weight": np.float32}
    examples = {"train": [{"image": png(k), "label": k % 2, "weight": k / 4} for k in range(3)]}
    made = make_set(tmp_path, features, examples)
    source = open_set(made, others=("label", "weight", "elsewhere"))
    expected = {"id": "train/1", "image": png(1), "captions": ["red panda"], "label": 1, "weight": 0.25}
    assert source[1] == expected and source.captions(2) == ["cat"] and source.classes == ("cat", "red panda")
    assert source.columns == ("image", "label")
    with pytest.raises(UserError, match="is of a type for caption_key"):
        open_set(made)
