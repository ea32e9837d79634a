"""Preparing a set: what is left out and why, the same bytes however it was made, and what is refused."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import prepare as configs
from maskvlm_jax.data.sources import opening
from maskvlm_jax.data.sources.array_record import ArrayRecords
from maskvlm_jax.prepare import preparation, survey
from maskvlm_jax.runtime.errors import UserError
from tests.prepare.albums import SOUND, Album, contents, found_by_root, jpeg, lines, picture, run, settings


@pytest.fixture
def albums(monkeypatch):
    return found_by_root(monkeypatch)


def test_sound_examples_come_back_as_they_were(albums, tmp_path):
    manifest = run(settings(tmp_path))
    source = ArrayRecords(root=str(tmp_path), split="train")
    assert [source[i] for i in range(10)] == [
        {"id": name, "image": image, "captions": [f"this is {name}"], "label": number}
        for number, (name, image) in enumerate(SOUND.items())
    ]
    assert [shard["examples"] for shard in manifest["shards"]] == [3, 3, 3, 1]
    assert (manifest["expected"], manifest["written"], manifest["captions"]) == (12, 10, 10)
    assert manifest["short_side"]["histogram"] == {"32-63": 10}
    assert manifest["caption_words"]["histogram"] == {"1-3": 10}
    assert source.report == {"missing_pictures": 2}
    assert set(contents(tmp_path)) == {
        "train/manifest.json",
        "train/dropped.jsonl",
        "train/captions.array_record",
        *(f"train/shard-0000{i}-of-00004.array_record" for i in range(4)),
    }


def test_every_reason_to_leave_an_example_out(albums, tmp_path, capsys):
    album = {
        "b-sound": SOUND["00"],
        "empty": b"",
        "text": b"no picture",
        "cut": SOUND["01"][:-200],
        "small": jpeg(picture(2, 20, 90)),
        "no caption": SOUND["03"],
        "same as that": SOUND["03"],  # the first of two is left out for a reason of its own: this is no duplicate
        "a-duplicate": SOUND["00"],
        "again": SOUND["00"],
    }
    albums["mixed"] = Album(album, {"no caption": [" "], "b-sound": ["", "one", "two"]})
    manifest = run(settings(tmp_path, root="mixed", expected=(20,)))
    source = ArrayRecords(root=str(tmp_path), split="train")
    assert [source.id(i) for i in range(len(source))] == ["b-sound", "same as that"]
    assert source.captions(0) == ["one", "two"]
    told = [(row["id"], row["reason"]) for row in lines(tmp_path / "train" / "dropped.jsonl")]
    assert told == [
        ("empty", "unreadable"),
        ("text", "not a picture"),
        ("cut", "not a picture"),
        ("small", "too small"),
        ("no caption", "no caption"),
        ("a-duplicate", "duplicate"),
        ("again", "duplicate"),
    ]
    assert lines(tmp_path / "train" / "dropped.jsonl")[-1]["detail"] == "the same bytes as b-sound"
    reasons = {"unreadable": 1, "not a picture": 2, "too small": 1, "no caption": 1, "duplicate": 2}
    assert manifest["dropped"] == reasons and manifest["duplicates"] == 2
    assert source.report["missing_pictures"] == 20 - 9
    printed = capsys.readouterr().out
    assert "parquet train: 2 of 20 expected examples (10.00 %)" in printed
    assert "1 unreadable, 2 not a picture, 1 too small, 1 no caption, 2 duplicate" in printed


def test_names_and_captions_that_are_no_unicode(albums, tmp_path):
    name, emoji = "\udcff.jpg", "\ud83d"  # a byte that is not UTF-8, as Python names files; half of a pair, as JSON may
    albums["odd"] = Album({name: SOUND["00"], f"same{name}": SOUND["00"]}, {name: [f"half {emoji}", "дом"]})
    run(settings(tmp_path, root="odd"))
    source = ArrayRecords(root=str(tmp_path), split="train")
    assert (source.id(0), source[0]["captions"]) == (name, ["дом"])
    assert lines(tmp_path / "train" / "dropped.jsonl")[0]["id"] == f"same{name}"


def test_duplicates_may_stay(albums, tmp_path):
    albums["twice"] = Album({"a": SOUND["00"], "b": SOUND["00"]})
    manifest = run(settings(tmp_path, root="twice", drop_duplicates=False))
    assert (manifest["written"], manifest["duplicates"], manifest["dropped"]) == (2, 1, {})


@pytest.fixture
def overlapping(albums):
    """A set to score with copies of two of the ten pictures, one smaller and recompressed, one larger and lighter."""
    light = np.clip(picture(7, 120, 160) * 0.9 + 20, 0, 255).astype(np.uint8)
    copies = {"small copy": jpeg(picture(4, 45, 60), quality=40), "light copy": jpeg(light)}
    others = {f"other {i}": jpeg(picture(100 + i)) for i in range(6)}
    albums["eval"] = Album({"broken": b"", **others, **copies})


@pytest.mark.parametrize("what", ["report", "drop"])
def test_overlap_with_an_evaluation_set(overlapping, tmp_path, what, capsys):
    manifest = run(settings(tmp_path, "data=parquet,against=coco", against="eval", overlap=what))
    rows = lines(tmp_path / "train" / "overlap.jsonl")
    assert [(row["id"], row["like"]) for row in rows] == [("04", "small copy"), ("07", "light copy")]
    assert all(row["bits"] <= 6 for row in rows)
    found = {"with": "coco test", "at_most_bits": 6, "pictures": 2, "share": 0.2, "dropped": what == "drop"}
    assert manifest["overlap"] == found
    assert manifest["dropped"] == ({"overlap": 2} if what == "drop" else {})
    assert manifest["written"] == (8 if what == "drop" else 10)
    assert "like a picture of coco test: 2 (20.00 %)" in capsys.readouterr().out


def test_a_set_is_not_compared_with_itself(albums, tmp_path):
    config = settings(tmp_path, "data=parquet,against=coco", against="sound", overlap="drop")
    assert run(config)["written"] == 10


def test_two_processes_write_the_same_files_as_one(overlapping, tmp_path):
    for workers in (1, 2):
        run(settings(tmp_path / str(workers), "data=parquet,against=coco", against="eval", workers=workers))
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_a_set_with_nothing_sound_says_where_the_reasons_are(albums, tmp_path):
    albums["bad"] = Album({"a": b"", "b": b""})
    with pytest.raises(UserError, match=r"no example of train is left; see .*dropped.jsonl"):
        run(settings(tmp_path, root="bad"))
    assert len(lines(tmp_path / "train" / "dropped.jsonl")) == 2


def test_larger_pictures_are_made_smaller_and_others_kept(albums, tmp_path):
    small, png = jpeg(picture(1, 40, 90)), picture(2, 30, 35)
    albums["sizes"] = Album({"large": jpeg(picture(0, 100, 150)), "small": small, "array": png, "drawn": picture(3)})
    run(settings(tmp_path, root="sizes", resize=40, min_size=0, quality=80))
    source = ArrayRecords(root=str(tmp_path), split="train")
    opened = [Image.open(io.BytesIO(source[i]["image"])) for i in range(4)]
    assert [(one.format, one.size) for one in opened] == [
        ("JPEG", (60, 40)),
        ("JPEG", (90, 40)),
        ("PNG", (35, 30)),
        ("PNG", (53, 40)),
    ]
    assert source[1]["image"] == small
    np.testing.assert_array_equal(np.asarray(opened[2]), png)
    assert (survey.phash(np.asarray(opened[0])) ^ survey.phash(picture(0, 100, 150))).bit_count() <= 6


def test_generated_scenes_can_be_prepared(tmp_path):
    config = settings(tmp_path, "data=scenes", root="", splits=("val",))
    config.data.limit = 5
    assert run(config)["expected"] == 5
    original = preparation.open_source(config.data.to_dict(), "val", config.image_size)
    source = ArrayRecords(root=str(tmp_path), split="val")
    for i in range(5):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(source[i]["image"]))), original[i]["image"])
        assert source[i]["captions"] == original[i]["captions"]


def test_the_command_line(cli, tmp_path):
    (tmp_path / "images").mkdir()
    for name, image in SOUND.items():
        (tmp_path / "images" / f"{name}.jpg").write_bytes(image)
    (tmp_path / "captions.csv").write_text(
        "image,caption\n" + "".join(f"{name}.jpg,this is {name}\n" for name in SOUND)
    )
    (tmp_path / "train.txt").write_text("".join(f"{name}.jpg\n" for name in SOUND))
    out = tmp_path / "out"
    process = cli("--config=configs/prepare.py:data=files", f"--config.data.root={tmp_path}", f"--config.out={out}")
    assert process.returncode == 0, process.stderr
    assert f"{out / 'train'} is finished\n  files train: 10 of 10 expected examples (100.00 %)" in process.stdout
    assert [path.name for path in out.iterdir()] == ["train"], "there is no val.txt"
    data = configs.get_config("data=array_record").data
    data.root = str(out)
    source = preparation.open_source(data.to_dict(), "train", 0)
    assert [source[i]["image"] for i in range(10)] == list(SOUND.values())


def test_verify_reads_every_byte(albums, tmp_path, capsys):
    run(settings(tmp_path))
    config = settings(tmp_path, splits=(), verify=True)
    preparation.run(config, Path("runs") / config.name)
    assert "all files of train in" in capsys.readouterr().out
    shard = tmp_path / "train" / "shard-00001-of-00004.array_record"
    content = bytearray(shard.read_bytes())
    content[5_000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"1 files are not as they were written: .*shard-00001-of-00004"):
        preparation.run(config, Path("runs") / config.name)
    with pytest.raises(UserError, match=r"there are no prepared shards in .*; set --config.out"):
        preparation.run(settings(tmp_path / "gone", splits=(), verify=True), Path("runs") / config.name)


@pytest.mark.parametrize(
    ("structure", "values", "message"),
    [
        ("data=parquet", {"out": ""}, "say where the shards go: --config.out=FOLDER"),
        ("data=parquet", {"overlap": "no"}, "overlap is 'no'; choose among report, drop"),
        ("data=parquet", {"overlap": "drop"}, "overlap=drop needs a set to compare with"),
        ("data=parquet", {"expected": (1, 2)}, "expected has 2 counts for 1 splits; name the splits"),
        ("data=parquet", {"quality": 101}, "quality is 101; give 1 to 100"),
        ("data=parquet", {"examples_per_shard": 0}, "examples_per_shard is 0; give at least 1"),
    ],
)
def test_bad_values(tmp_path, structure, values, message):
    config = configs.get_config(structure)
    for name, value in ({"out": str(tmp_path / "out"), "splits": ("train",)} | values).items():
        config[name] = value
    with pytest.raises(UserError, match=message):
        preparation.run(config, Path("runs") / config.name)
    assert not (tmp_path / "out").exists()


def test_the_splits_of_a_set_are_those_on_disk(tmp_path):
    data = configs.get_config("data=flickr8k").data
    data.root = str(tmp_path)
    (tmp_path / "Flickr_8k.trainImages.txt").touch()
    (tmp_path / "Flickr_8k.devImages.txt").touch()
    assert opening.existing_splits(data) == ["train", "val"]
    data = configs.get_config("data=coco").data
    data.root = str(tmp_path)
    images = [{"filename": f"{s}.jpg", "split": s, "sentences": []} for s in ("train", "restval", "test")]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    assert opening.existing_splits(data) == ("train", "test")
    data = configs.get_config("data=webdataset").data
    data.root = str(tmp_path)
    (tmp_path / "val-00000.tar").touch()
    assert opening.existing_splits(data) == ["val"]
    assert opening.existing_splits(configs.get_config("data=scenes").data) == ("train", "val", "test", "novel")
