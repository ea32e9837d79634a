"""Preparing a set: what is left out and why, the same bytes however it was made, and what is refused."""

import dataclasses
import io
import json
import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from configs import prepare as configs
from maskvlm_jax import prepare
from maskvlm_jax.data import pieces, records, survey
from maskvlm_jax.data.records import ArrayRecords
from maskvlm_jax.errors import Stopped, UserError
from maskvlm_jax.stopping import StopRequest


def picture(seed: int, height: int = 60, width: int = 80) -> np.ndarray:
    """Smooth random colours: no two are alike, and all keep their look when they are resized."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(pixels: np.ndarray, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


class Album:
    """A source held in memory."""

    def __init__(self, pictures: dict[str, bytes | np.ndarray], captions: dict[str, list[str]] | None = None):
        self._pictures, self._captions, self.report = list(pictures.items()), captions or {}, {"missing_pictures": 2}

    def __len__(self):
        return len(self._pictures)

    def id(self, index: int) -> str:
        return self._pictures[index][0]

    def captions(self, index: int) -> list[str]:
        return self._captions.get(self.id(index), [f"this is {self.id(index)}"])

    def __getitem__(self, index: int) -> dict:
        name, image = self._pictures[index]
        return {"id": name, "image": image, "captions": self.captions(index), "more": "is not kept"}

    @property
    def fingerprint(self) -> str:
        return repr([name for name, _ in self._pictures])


SOUND = {f"{i:02d}": jpeg(picture(i)) for i in range(10)}


@pytest.fixture
def albums(monkeypatch):
    """Sources by root: those that `open_source` finds in the test; small pieces, so that there are several."""
    found = {"sound": Album(SOUND)}
    monkeypatch.setattr(prepare, "open_source", lambda data, split, image_size: found[data["root"]])
    monkeypatch.setattr(pieces, "SCANNED", 4)
    return found


def settings(out: Path, structure: str = "data=parquet", root: str = "sound", against: str = "", **values):
    config = configs.get_config(structure)
    config.data.root = root
    if against:
        config.against.root = against
    common = {"out": str(out), "splits": ("train",), "examples_per_shard": 3, "workers": 1, "min_size": 32}
    for name, value in (common | values).items():
        config[name] = value
    return config


def run(config) -> dict:
    """Prepares, and returns the manifest."""
    prepare.run(config, Path("runs") / config.name)
    return records.read_manifest(Path(config.out) / config.splits[0])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_sound_examples_come_back_as_they_were(albums, tmp_path):
    manifest = run(settings(tmp_path))
    source = ArrayRecords(root=str(tmp_path), split="train")
    assert [source[i] for i in range(10)] == [
        {"id": name, "image": image, "captions": [f"this is {name}"]} for name, image in SOUND.items()
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


class Killed(BaseException):
    """Ends a preparation at once, wherever it is."""


def kill_at(monkeypatch, module, name: str, call: int) -> list:
    """Makes the `call`-th call of a function the end; returns the calls, which grow."""
    function, calls = getattr(module, name), []

    def counted(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise Killed
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)
    return calls


def run_killed_at(monkeypatch, config, record: int) -> None:
    """A run that ends before its `record`-th record is written."""
    with monkeypatch.context() as patch:
        kill_at(patch, records, "encode", record)
        with pytest.raises(Killed):
            run(config)


@pytest.mark.parametrize(
    ("module", "name", "call", "left"),
    [
        (survey, "examine", 6, 6),  # in the second piece of the scan, when the four examples of the first are kept
        (records, "encode", 5, 0),  # in the second shard
        (records, "encode", 12, 0),  # in the file of the captions
        (
            prepare.pieces,
            "write_json",
            6,
            0,
        ),  # before the manifest: the calls before it are one at the beginning and one a shard
    ],
)
def test_what_was_killed_goes_on_and_ends_with_the_same_files(albums, tmp_path, monkeypatch, module, name, call, left):
    run(settings(tmp_path / "straight"))
    config = settings(tmp_path / "killed")
    with monkeypatch.context() as patch:
        kill_at(patch, module, name, call)
        with pytest.raises(Killed):
            run(config)
    assert not (tmp_path / "killed" / "train" / records.MANIFEST).exists()
    with pytest.raises(UserError, match="is not finished; the command that prepared it goes on"):
        ArrayRecords(root=config.out, split="train")
    examined = kill_at(monkeypatch, survey, "examine", 100)
    run(config)
    assert len(examined) == left, "what was scanned before is not scanned again"
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")


def test_finished_shards_are_not_written_again(albums, tmp_path, monkeypatch):
    config = settings(tmp_path)
    run_killed_at(monkeypatch, config, 8)
    first = tmp_path / "train" / "shard-00000-of-00004.array_record"
    before = first.stat()
    run(config)
    assert first.stat() == before


def test_a_signal_stops_behind_a_piece(albums, tmp_path):
    stop = StopRequest()
    stop.signal = signal.SIGTERM
    scans = pieces.Scan.cut(albums["sound"], 10, tmp_path / "scan", min_size=0)
    crew = pieces.Crew([albums["sound"]], workers=1, stop=stop)
    with crew, pytest.raises(Stopped, match="the same command goes on"):
        crew.run(scans, "")
    assert [scan.done for scan in scans] == [True, False, False]


@dataclasses.dataclass(frozen=True)
class Deadly:
    """A piece that ends its process as the kernel does when memory runs out."""

    source: Album | None
    examples: int = 1
    done: bool = False

    def run(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_told(albums):
    deadly = [Deadly(albums["sound"])] * 2
    crew = pieces.Crew([albums["sound"]], workers=2, stop=StopRequest())
    with crew, pytest.raises(UserError, match="a worker process was killed, perhaps for want of memory"):
        crew.run(deadly, "")


def test_a_finished_set_that_lacks_a_file_is_told(albums, tmp_path):
    run(settings(tmp_path))
    shard = next(tmp_path.rglob("*.array_record"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=f"{shard.name} is not of the size that was written; copy it again"):
        run(settings(tmp_path))
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} is missing; copy it again, or remove {shard.parent}"):
        run(settings(tmp_path))
    shard.write_bytes(whole)
    run(settings(tmp_path))


def test_a_finished_set_is_left_alone(albums, tmp_path, capsys):
    run(settings(tmp_path))
    before = contents(tmp_path)
    capsys.readouterr()
    run(settings(tmp_path, workers=2))
    assert "is finished already\n  parquet train: 10 of 12" in capsys.readouterr().out
    assert contents(tmp_path) == before


def test_other_values_and_other_sources_are_refused(albums, tmp_path):
    run(settings(tmp_path))
    before = contents(tmp_path)
    albums["less"] = Album({"00": SOUND["00"]})
    for changed, named in (
        ({"resize": 40}, "with other values of quality, resize"),
        ({"min_size": 10}, "with other values of min_size"),
        ({"root": "less"}, "from other examples or captions"),
        ({"structure": "data=parquet,against=coco", "against": "less"}, "with other values of against, against_distan"),
    ):
        with pytest.raises(UserError, match=f"was prepared {named}.*; use another --config.out, or remove it"):
            run(settings(tmp_path, **changed))
    assert contents(tmp_path) == before


def test_unfinished_work_of_another_preparation_is_refused(albums, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_at(patch, survey, "examine", 6)
        with pytest.raises(Killed):
            run(settings(tmp_path))
    before = contents(tmp_path)
    with pytest.raises(UserError, match="was prepared in part with other values of quality, resize"):
        run(settings(tmp_path, resize=40))
    assert contents(tmp_path) == before


def test_a_folder_with_other_files_is_refused(albums, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="holds other files; use another"):
        run(settings(tmp_path))
    assert contents(tmp_path) == {"train/photo.jpg": b"mine"}


def test_a_set_with_nothing_sound_says_where_the_reasons_are(albums, tmp_path):
    albums["bad"] = Album({"a": b"", "b": b""})
    with pytest.raises(UserError, match=r"no example of train is left; see .*dropped.jsonl"):
        run(settings(tmp_path, root="bad"))
    assert len(lines(tmp_path / "train" / "dropped.jsonl")) == 2


def test_a_picture_that_changes_on_the_way_is_told(albums, tmp_path, monkeypatch):
    config = settings(tmp_path)
    run_killed_at(monkeypatch, config, 1)
    albums["sound"]._pictures[4] = ("04", SOUND["05"])
    with pytest.raises(UserError, match="the picture 04 changed while it was prepared; remove"):
        run(config)


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
    original = prepare.open_source(config.data.to_dict(), "val", config.image_size)
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
    source = prepare.open_source(data.to_dict(), "train", 0)
    assert [source[i]["image"] for i in range(10)] == list(SOUND.values())


def test_verify_reads_every_byte(albums, tmp_path, capsys):
    run(settings(tmp_path))
    config = settings(tmp_path, splits=(), verify=True)
    prepare.run(config, Path("runs") / config.name)
    assert "all files of train in" in capsys.readouterr().out
    shard = tmp_path / "train" / "shard-00001-of-00004.array_record"
    content = bytearray(shard.read_bytes())
    content[5_000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"1 files are not as they were written: .*shard-00001-of-00004"):
        prepare.run(config, Path("runs") / config.name)
    with pytest.raises(UserError, match=r"there are no prepared shards in .*; set --config.out"):
        prepare.run(settings(tmp_path / "gone", splits=(), verify=True), Path("runs") / config.name)


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
        prepare.run(config, Path("runs") / config.name)
    assert not (tmp_path / "out").exists()


def test_the_splits_of_a_set_are_those_on_disk(tmp_path):
    data = configs.get_config("data=flickr8k").data
    data.root = str(tmp_path)
    (tmp_path / "Flickr_8k.trainImages.txt").touch()
    (tmp_path / "Flickr_8k.devImages.txt").touch()
    assert prepare.existing_splits(data) == ["train", "val"]
    data = configs.get_config("data=coco").data
    data.root = str(tmp_path)
    images = [{"filename": f"{s}.jpg", "split": s, "sentences": []} for s in ("train", "restval", "test")]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    assert prepare.existing_splits(data) == ("train", "test")
    data = configs.get_config("data=webdataset").data
    data.root = str(tmp_path)
    (tmp_path / "val-00000.tar").touch()
    assert prepare.existing_splits(data) == ["val"]
    assert prepare.existing_splits(configs.get_config("data=scenes").data) == ("train", "val", "test", "novel")
