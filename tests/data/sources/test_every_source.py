"""The same pictures through every source, and prepared from it, are the same batches."""

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from configs import prepare as prepare_config
from configs import pretrain
from maskvlm_jax.data import training_stream
from maskvlm_jax.data.sources.base import Source
from maskvlm_jax.data.sources.opening import open_source
from maskvlm_jax.data.sources.training_set import Limited
from maskvlm_jax.prepare import preparation
from tests.data.hostile import encoded, picture
from tests.data.sources.tfds_sets import make_set
from tests.data.streaming import make_example, make_tokenizer

NAMES = [f"{number:03d}" for number in range(10)]
PICTURES = {name: encoded(picture(int(name)), "JPEG") for name in NAMES}
CAPTIONS = {name: [f"a dog, number {name}", f"Number {name} again."] for name in NAMES}


def write_pictures(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    for name, data in PICTURES.items():
        (folder / "images" / f"{name}.jpg").write_bytes(data)


def write_csv(folder: Path) -> dict:
    write_pictures(folder)
    with (folder / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        rows.writerows([f"{name}.jpg", caption] for name in NAMES for caption in CAPTIONS[name])
    return {"source": "files", "images": "images", "captions": "captions.csv", "splits": {}}


def write_jsonl(folder: Path) -> dict:
    write_pictures(folder)
    lines = [json.dumps({"image": f"{name}.jpg", "captions": CAPTIONS[name]}) for name in NAMES]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return {"source": "files", "images": "images", "captions": "captions.jsonl", "splits": {}}


def write_coco(folder: Path) -> dict:
    write_pictures(folder)
    images = [{"id": int(name), "file_name": f"{name}.jpg"} for name in NAMES]
    annotations = [{"image_id": int(name), "caption": caption} for name in NAMES for caption in CAPTIONS[name]]
    (folder / "coco.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return {"source": "files", "images": "images", "captions": "coco.json", "splits": {}}


def write_karpathy(folder: Path) -> dict:
    write_pictures(folder)
    images = [
        {"filename": f"{name}.jpg", "split": "train", "sentences": [{"raw": caption} for caption in CAPTIONS[name]]}
        for name in NAMES
    ]
    (folder / "dataset.json").write_text(json.dumps({"images": images}))
    return {"source": "files", "images": "images", "captions": "dataset.json", "splits": {}}


def write_tar(folder: Path) -> dict:
    folder.mkdir(parents=True)
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for name in NAMES[shard * 5 : shard * 5 + 5]:
                told = json.dumps({"captions": CAPTIONS[name]}).encode()
                for member, data in ((f"{name}.jpg", PICTURES[name]), (f"{name}.json", told)):
                    header = tarfile.TarInfo(member)
                    header.size = len(data)
                    tar.addfile(header, io.BytesIO(data))
    return {"source": "webdataset", "splits": {"train": "*.tar"}, "caption_key": "captions"}


def write_parquet(folder: Path) -> dict:
    folder.mkdir(parents=True)
    columns = {
        "image": [{"bytes": PICTURES[name], "path": f"{name}.jpg"} for name in NAMES],
        "captions": [CAPTIONS[name] for name in NAMES],
    }
    pq.write_table(pa.table(columns), folder / "train-0.parquet", row_group_size=4)
    return {"source": "parquet", "splits": {"train": "train-*.parquet"}}


def write_tfds(folder: Path) -> dict:
    features = {"image": tfds.features.Image(), "captions": tfds.features.Sequence(tfds.features.Text())}
    make_set(folder, features, {"train": [{"image": PICTURES[name], "captions": CAPTIONS[name]} for name in NAMES]})
    return {"source": "tfds"}


SOURCES = {
    "csv": write_csv,
    "jsonl": write_jsonl,
    "coco": write_coco,
    "karpathy": write_karpathy,
    "webdataset": write_tar,
    "parquet": write_parquet,
    "tfds": write_tfds,
}


def data_block(folder: Path, write: Callable[[Path], dict]) -> dict:
    return pretrain.get_config("data=files").data.to_dict() | {"root": str(folder)} | write(folder)


def batches_of(source: Source) -> list[dict[str, np.ndarray]]:
    augment = {"crop_scale": (0.4, 1.0), "flip": True, "randaugment_ops": 2, "randaugment_magnitude": 7}
    make = make_example(source, make_tokenizer(source), augment)
    options = {"batch_size": 5, "seed": 3, "start": 0, "stop": 4, "workers": 0, "threads": 1}
    return list(training_stream.train_stream(Limited(source), make, **options))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    return batches_of(open_source(data_block(tmp_path_factory.mktemp("expected") / "data", write_csv), "train", 32))


def assert_equal(batches: list[dict], expected: list[dict]) -> None:
    for ours, theirs in zip(batches, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            np.testing.assert_array_equal(ours[key], value, err_msg=key)


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_and_what_is_prepared_from_it_give_the_same_batches(name, expected, tmp_path):
    data = data_block(tmp_path / "data", SOURCES[name])
    assert_equal(batches_of(open_source(data, "train", 32)), expected)

    config = prepare_config.get_config()
    with config.unlocked():
        config.data.update(data)
    config.update(out=str(tmp_path / "out"), splits=("train",), examples_per_shard=4, workers=1)
    preparation.run(config, tmp_path)
    prepared = {**data, "source": "array_record", "root": str(tmp_path / "out")}
    assert_equal(batches_of(open_source(prepared, "train", 32)), expected)
