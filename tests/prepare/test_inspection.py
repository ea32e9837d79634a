"""Inspecting a set: exact numbers, and a contact sheet that shows what the stream yields."""

import io
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from absl import flags
from PIL import Image

from maskvlm_jax import inspect_data
from maskvlm_jax.data import examples, tokenizer, training_stream
from maskvlm_jax.data.sources.opening import open_training_source
from maskvlm_jax.prepare import inspection
from maskvlm_jax.runtime.errors import UserError
from tests.conftest import ROOT, toy_config

# The tokenizer is made of these words: it has no letter for what is in no other alphabet.
KNOWN = ["a dog runs over the green grass", "two cats sit on a red chair", "a man and a child play"]


def jpeg(seed: int, height: int, width: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Ten pictures in the list: one missing, one cut off, one that is text, one that is there twice."""
    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    pictures = {f"{i}.jpg": jpeg(i, 40, 60) for i in range(5)}
    pictures |= {"5.jpg": jpeg(5, 20, 90), "6.jpg": jpeg(6, 40, 60)[:-200], "7.jpg": b"text", "8.jpg": jpeg(1, 40, 60)}
    for name, content in pictures.items():
        (root / "images" / name).write_bytes(content)
    captions = {f"{i}.jpg": KNOWN[i % 3] for i in range(10)}
    captions |= {"0.jpg": "a dog дом and a дом", "2.jpg": "a dog " * 10}
    rows = [json.dumps({"image": name, "captions": [caption]}) for name, caption in captions.items()]
    (root / "captions.jsonl").write_text("\n".join(rows))
    (root / "train.txt").write_text("\n".join(captions))
    (root / "val.txt").write_text("1.jpg\n")
    tokenizer.save(tokenizer.train_wordpiece(KNOWN, 200), root / "tokenizer")
    return root


def settings(root: Path, **values):
    config = toy_config("data=files", **values)
    config.data.root, config.data.captions = str(root), "captions.jsonl"
    config.data.max_missing, config.data.tokenizer = 0.5, str(root / "tokenizer")
    return config


@pytest.fixture(scope="module")
def inspected(root, tmp_path_factory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("inspect") / "new"
    return inspection.inspect(settings(root), folder, examples=0), folder


def test_the_numbers_are_exact(inspected):
    report, folder = inspected
    assert report == json.loads((folder / "report.json").read_text())
    assert (report["expected"], report["present"], report["trained_on"], report["looked_at"]) == (10, 9, 9, 9)
    assert report["left_out"] == {"missing_pictures": 1}
    assert report["broken"] == {"not a picture": 2}
    assert [row["id"] for row in report["broken_examples"]] == ["6.jpg", "7.jpg"]
    assert "truncated" in report["broken_examples"][0]["detail"]
    assert report["duplicate_examples"] == [{"id": "8.jpg", "same_as": "1.jpg"}] and report["duplicates"] == 1
    assert report["short_side"]["histogram"] == {"0-31": 1, "32-63": 6}
    assert report["smaller_than_image_size"] == 1  # 20 < 32
    lengths = [6, 7, 20, 7, 7, 6, 7, 7, 6]  # words of the captions in order; each is one token here
    assert report["captions"] == 9 and report["tokens"] == sum(lengths)
    assert report["captions_cut"] == 1 and report["max_length"] == 20
    assert report["unknown_tokens"] == 2 and report["unknown_words"] == {"дом": 2}


def test_the_text_says_what_matters(inspected):
    told = inspection.text(inspected[0])
    for line in (
        "maskvlm-tiny-files: 9 (90.00 %) of 10 expected examples are there, 9 are trained on",
        "  1 missing pictures",
        "looked at 9: 2 (22.22 %) broken",
        "  2 not a picture",
        "duplicates among them: 1 (11.11 %)",
        "    8.jpg is 1.jpg",
        "smaller than the model's 32: 1 (11.11 %)",
        "captions cut at 20 tokens: 1 (11.11 %)",
        "tokens unknown to the tokenizer: 2 (2.74 %)",
        "  дом 2",
    ):
        assert line in told.split("\n")


def test_the_contact_sheet_shows_the_first_examples_of_the_run(root, inspected):
    sheet = np.asarray(Image.open(inspected[1] / "contact_sheet.png"))
    config = settings(root)
    source = open_training_source(config.data.to_dict(), 32)
    make_example = examples.make_example(config, source, tokenizer.load(root / "tokenizer"))
    options = {"batch_size": 8, "seed": 0, "start": 0, "stop": 1, "workers": 0, "threads": 1}
    batch = next(training_stream.train_stream(source, make_example, **options))
    gap, tile, rows = inspection.GAP, 192, 5
    for number in range(8):
        top = gap + number % rows * (tile + gap)
        left = gap + number // rows * (2 * (tile + gap) + inspection.TEXT_WIDTH + gap)
        shown, masked = (sheet[top : top + tile, x : x + tile][::6, ::6] for x in (left, left + tile + gap))
        np.testing.assert_array_equal(shown, batch["image"][number])
        hidden = batch["image_masked"][number].reshape(4, 4).repeat(8, axis=0).repeat(8, axis=1)
        np.testing.assert_array_equal(masked[~hidden], batch["image"][number][~hidden])
        assert set(np.unique(masked[hidden])) == set(inspection.HATCH)
        text = sheet[top : top + tile, left + 2 * (tile + gap) :][:, : inspection.TEXT_WIDTH]
        marked = (text == inspection.MARK).all(axis=-1).any(axis=0).any()
        assert marked == batch["text_masked"][number].any()
    assert batch["replaced"].any(), "broken pictures are among them"


def test_the_words_of_an_example_and_which_are_hidden(root):
    tokens = tokenizer.load(root / "tokenizer")
    ids, *_ = tokens.encode("a dog runs", 8)
    masked = ids.copy()
    masked[[1, 3]] = tokens.mask_id, ids[2]
    example = {"tokens": ids, "tokens_masked": masked, "token_valid": ids != tokens.pad_id}
    example["text_masked"] = np.isin(np.arange(8), (1, 3))
    words = [(word.text, word.mark is not None) for word in inspection._words(example, tokens)]
    assert words == [("a", True), ("dog", False), ("runs (seen: dog)", True)]


def test_a_part_of_a_large_set_is_evenly_spaced(root, tmp_path):
    config = settings(root)
    config.data.limit = 8
    report = inspection.inspect(config, tmp_path, examples=2)
    assert (report["looked_at"], report["trained_on"], report["present"]) == (2, 8, 9)
    assert [row["id"] for row in report["broken_examples"]] == ["7.jpg"], "the first and the last are looked at"


def test_a_mixture_and_a_tokenizer_of_its_captions(root, tmp_path):
    config = toy_config("data=scenes+files", steps=1)
    config.data.mixture.scenes.limit = 50
    for key, value in {"root": str(root), "captions": "captions.jsonl", "max_missing": 0.5}.items():
        config.data.mixture.files[key] = value
    report = inspection.inspect(config, tmp_path, examples=0)
    assert (report["trained_on"], report["looked_at"]) == (59, 59)
    assert [row["id"] for row in report["broken_examples"]] == ["files/6.jpg", "files/7.jpg"]
    assert report["left_out"] == {"files: missing_pictures": 1}
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "contact_sheet.png"}


def test_the_command_line(root, tmp_path, cli_environment):
    command = [sys.executable, "-m", "maskvlm_jax.inspect_data", "--config=configs/pretrain.py:data=files"]
    command += [f"--workdir={tmp_path / 'out'}", "--examples=3"]
    command += [f"--config.data.{key}" for key in (f"root={root}", "captions=captions.jsonl", "max_missing=0.5")]
    process = subprocess.run(command, cwd=ROOT, env=cli_environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert "looked at 3: 0 (0.00 %) broken" in process.stdout
    assert f"{tmp_path / 'out' / 'contact_sheet.png'} shows what the model sees" in process.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "contact_sheet.png"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "error: batch_size is 0; give at least 1"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(values, message, capsys, monkeypatch):
    config = toy_config(**values)
    monkeypatch.setattr(inspect_data.command_line, "parse", lambda argv, *, tasks: (config, Path()))
    flags.FLAGS.mark_as_parsed()
    assert inspect_data.main(["inspect_data"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(message) and told.count("\n") == 1


def test_a_set_without_a_sound_picture_is_an_error(root, tmp_path):
    (root / "bad.txt").write_text("6.jpg\n7.jpg\n")
    config = settings(root)
    with config.unlocked():
        config.data.splits.train = "bad.txt"
    with pytest.raises(UserError, match="no example can be used among 2 in a row"):
        inspection.inspect(config, tmp_path, examples=0)
