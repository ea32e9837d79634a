"""The worked examples of docs/architecture.md are files of anybody's own, trained with a line of config each; and its
table of rooms names every module."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from maskvlm_jax.models.pretrained import encoders
from tests.conftest import ROOT, toy_config, toy_flags
from tests.reference import exporting as exports

PAGE = (ROOT / "docs" / "architecture.md").read_text()


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """A folder with the examples, each in the file that its first line names."""
    folder = tmp_path_factory.mktemp("examples")
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, flags=re.S)
    for name, text in blocks:
        (folder / name).write_text(text)
    assert {name for name, _ in blocks} == {
        "my_config.py",
        "mean_colour.py",
        "caption_length.py",
        "stripes.py",
        "short_masks.py",
        "word_count.py",
        "our_vit.py",
        "colour_of_caption.py",
    }
    return folder


def test_the_examples_of_new_parts_are_trained_and_scored(examples, cli_environment, tmp_path):
    # In the folder of the examples, as the page has it: paths are as short as they are there.
    flags = toy_flags(steps=4, evaluation__extra_splits="()")
    config = f"--config={examples / 'my_config.py'}:recipe=short_masks.py"
    command = [sys.executable, "-m", "maskvlm_jax.main", config, f"--workdir={tmp_path / 'run'}", *flags]
    process = subprocess.run(command, cwd=examples, env=cli_environment, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["data"]["fields"] == {"word_count": {"name": "word_count.py"}}
    assert written["masking"]["text_ratio"] == 0.2 and written["name"].startswith("short_masks-")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all("mean_colour/loss" in line for line in lines if line["split"] == "train")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metrics"]["caption_words"] == 3.0
    assert result["protocol"]["trained_on"] == "stripes.py/train"


def test_the_example_of_a_task_is_tuned_and_scored(examples, cli_environment, tmp_path):
    config = toy_config(data__source=str(examples / "stripes.py"))
    (tmp_path / "trained").mkdir()
    exports.make_workdir(tmp_path / "trained", config)
    flags = [flag for flag in toy_flags(steps=30, optim__lr=0.01, optim__encoder_lr=0.01) if "decoder" not in flag]
    flags += [f"--config.checkpoint={tmp_path / 'trained'}", "--config.evaluation.extra_splits=()"]
    config = f"--config={ROOT}/configs/finetune.py:task=colour_of_caption.py"
    command = [sys.executable, "-m", "maskvlm_jax.main", config, f"--workdir={tmp_path / 'run'}", *flags]
    process = subprocess.run(command, cwd=examples, env=cli_environment, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metrics"] == {"colour_accuracy": 100.0}


def test_the_example_of_a_family_reads_its_encoder(examples, tmp_path):
    vit = ROOT / "tests" / "reference" / "encoders" / "vit"
    arrays = {f"student.backbone.{name}": value for name, value in load_file(vit / "model.safetensors").items()}
    arrays |= {"student.head.weight": np.zeros((3, 16), np.float32)}
    save_file(arrays, tmp_path / "model.safetensors")
    described = json.loads((vit / "config.json").read_text()) | {"model_type": "our_vit"}
    (tmp_path / "config.json").write_text(json.dumps(described))
    (tmp_path / "preprocessor_config.json").write_text((vit / "preprocessor_config.json").read_text())
    ours, theirs = (toy_config(init__image=str(folder)) for folder in (tmp_path, vit))
    ours.init.image_family = str(examples / "our_vit.py")
    for config in (ours, theirs):
        encoders.complete(config, ())
    found, expected = (encoders.read(config, "image").parameters for config in (ours, theirs))
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value)


def test_the_table_of_rooms_names_every_module_once():
    table = PAGE[PAGE.index("## Rooms") : PAGE.index("## Contracts")]
    named = []
    for room, text in re.findall(r"^\| `?([\w/]+)`? \| (.*) \|$", table, flags=re.M):
        folder = "" if room in ("commands", "room") else room
        named += [f"{folder}{name}" for name in re.findall(r"`([\w/]+\.py)`", text)]
    package = ROOT / "maskvlm_jax"
    there = [str(path.relative_to(package)) for path in package.rglob("*.py") if path.name != "__init__.py"]
    assert sorted(named) == sorted(there)
