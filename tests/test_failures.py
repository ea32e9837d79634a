"""Broken input while a run is under way."""

import csv
import errno
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from maskvlm_jax.runtime import files
from maskvlm_jax.runtime.errors import UserError, unwritable, writing
from maskvlm_jax.runtime.metrics import MetricWriter
from tests.conftest import ROOT, toy_flags

FLICKR = "--config=configs/pretrain.py:data=flickr8k"
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (120, 120, 120)}


def write_set(root, pictures: int = 24) -> None:
    """A small set in Flickr8k's layout."""
    (root / "Images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows, names = [["image", "caption"]], []
    for i in range(pictures):
        name, colour = f"{i:03d}.jpg", list(COLOURS)[i % 4]
        pixels = np.clip(rng.normal(COLOURS[colour], 20, (40, 50, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / "Images" / name, quality=90)
        rows += [[name, f"a {colour} wall , number {i}"], [name, f"{colour} paint"]]
        names.append(name)
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    (root / "captions.txt").write_text(text.getvalue())
    (root / "Flickr_8k.trainImages.txt").write_text("\n".join(names[:16]))
    (root / "Flickr_8k.devImages.txt").write_text("\n".join(names[16:]))


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    write_set(root)
    return root


def run(cli, tmp_path, root, **values):
    flags = toy_flags(masking__image_cell=1, model__text__vocab_size=300, **values)
    return cli(FLICKR, f"--workdir={tmp_path / 'run'}", f"--config.data.root={root}", *flags)


def test_broken_pictures_are_replaced_counted_and_left_out_of_the_evaluation(cli, tmp_path, photos):
    (photos / "Images" / "003.jpg").write_bytes(b"not a picture")
    (photos / "Images" / "020.jpg").write_bytes((photos / "Images" / "020.jpg").read_bytes()[:200])
    process = run(cli, tmp_path, photos)
    assert process.returncode == 0, process.stderr
    assert "1 broken, replaced " in process.stdout and "1 not a picture (003.jpg);" in process.stdout
    assert "warning: 1 picture(s) of val cannot be used and are left out: 020.jpg" in process.stdout
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["protocol"]["broken_images"] == 1
    assert result["protocol"]["images"] == 7 and result["protocol"]["captions"] == 14


@pytest.mark.slow
def test_pictures_that_are_not_on_disk_and_empty_captions_are_left_out_and_counted(cli, tmp_path, photos):
    (photos / "Images" / "002.jpg").unlink()
    with (photos / "captions.txt").open("a") as file:
        file.write("001.jpg,\n")
    process = run(cli, tmp_path, photos, data__max_missing=0.2)
    assert process.returncode == 0, process.stderr
    assert "warning: left out of the data: 1 missing pictures" in process.stdout
    assert "1 empty captions" in process.stdout


def test_many_missing_pictures_are_an_error(cli, tmp_path, photos):
    for i in range(8):
        (photos / "Images" / f"{i:03d}.jpg").unlink()
    process = run(cli, tmp_path, photos)
    assert process.returncode == 2
    assert "8 of 16 pictures" in process.stderr and process.stderr.count("\n") == 1


def test_a_bad_row_is_named_with_its_number(cli, tmp_path, photos):
    with (photos / "captions.txt").open("a") as file:
        file.write("only-one-column\n")
    process = run(cli, tmp_path, photos)
    assert process.returncode == 2
    assert "captions.txt row 50" in process.stderr and process.stderr.count("\n") == 1


def test_a_loss_that_is_not_finite_stops_with_step_loss_and_pictures(cli, tmp_path):
    flags = toy_flags(optim__lr=1e30, optim__encoder_lr=1e30)
    process = cli("--config=configs/pretrain.py", f"--workdir={tmp_path / 'run'}", *flags)
    assert process.returncode == 2
    assert "not finite; the last checkpoint is untouched" in process.stderr and process.stderr.count("\n") == 1
    assert "step 3:" in process.stderr and "masked_text/loss" in process.stderr and "train-" in process.stderr
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["2"]


def test_a_tokenizer_with_more_tokens_than_the_model_is_named(cli, tmp_path, finished_run):
    tokenizer = finished_run[0] / "tokenizer"
    flags = toy_flags(data__tokenizer=tokenizer, model__text__vocab_size=20)
    process = cli("--config=configs/pretrain.py", f"--workdir={tmp_path / 'run'}", *flags)
    assert process.returncode == 2
    assert "the model 20; set --config.model.text.vocab_size=" in process.stderr


def test_a_checkpoint_that_cannot_be_written_is_one_line_and_is_not_taken_for_a_whole_one(cli_environment, tmp_path):
    workdir = tmp_path / "run"
    limited = ["bash", "-c", 'ulimit -f 100; exec "$@"', "_"]  # no file of more than 100 KiB
    command = [sys.executable, "-m", "maskvlm_jax.main", "--config=configs/pretrain.py", f"--workdir={workdir}"]
    process = subprocess.run(
        [*limited, *command, *toy_flags()], cwd=ROOT, env=cli_environment, capture_output=True, text=True, timeout=600
    )
    assert process.returncode == 2
    assert process.stderr.startswith(f"error: {workdir}/checkpoints/2 cannot be written (File too large): raise the ")
    assert process.stderr.count("\n") == 1
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["2.orbax-checkpoint-tmp"]


FULL = "cannot be written (No space left on device): free space there, and the same command goes on"


def test_a_full_disk_is_told_with_the_file(tmp_path, monkeypatch):
    (tmp_path / "result.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match=f"{tmp_path}/result.json {re.escape(FULL)}"):
        files.write_json(tmp_path / "result.json", {"steps": 6})
    writer = MetricWriter(tmp_path, 0)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=f"{tmp_path}/metrics.jsonl {re.escape(FULL)}"):
        writer.write(1, "train", {"loss": 1.0})


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        ValueError("RESOURCE_EXHAUSTED: Failed writing: \"a/b\" [os_error_code='28']"),  # TensorStore
        Exception("No space left on device (os error 28)"),  # tokenizers
    ],
)
def test_what_libraries_make_of_a_full_disk_is_told_alike(error):
    with pytest.raises(UserError) as told, writing("runs/a"):
        raise error
    assert str(told.value) == f"runs/a {FULL}"


def test_an_error_that_is_not_the_disk_s_stays_what_it_is():
    assert unwritable("runs/a", ValueError("shapes differ")) is None
    with pytest.raises(ValueError, match="shapes differ"), writing("runs/a"):
        raise ValueError("shapes differ")
