"""A run starts from encoders that were trained elsewhere, and says so."""

import json
import shutil

import jax
import numpy as np
import pytest

from configs import finetune_retrieval, pretrain
from maskvlm_jax.models.pretrained import encoders
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import plain_values, rules
from maskvlm_jax.training import build, initial_state
from maskvlm_jax.training.checkpoint import Checkpoints
from tests.conftest import ROOT, toy_config, toy_flags
from tests.reference import toy
from tests.training.steps import mesh_of

FOLDER = ROOT / "tests" / "reference" / "encoders"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "##e", "##d"]


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    """A BERT with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("encoders") / "bert"
    shutil.copytree(FOLDER / "bert", folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return folder


@pytest.mark.parametrize("axes", [(8, 1, 1), (2, 2, 2)])
def test_the_state_holds_what_was_read_and_new_parameters_for_the_rest(text_folder, tmp_path, capsys, axes):
    config = toy_config(init__image=str(FOLDER / "dinov2"), init__text=str(text_folder), optim__ema_decay=0.9)
    encoders.complete(config, ())
    mesh = mesh_of(*axes)
    with jax.set_mesh(mesh):
        built = build.build(config, mesh)
        checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
        state, progress = initial_state.restore_or_init(config, tmp_path, checkpoints, built)
        checkpoints.close()
        fresh = toy.by_path(jax.device_get(built.init().params))
    assert progress.stream is None or not progress.stream
    found, average = (toy.by_path(jax.device_get(params)) for params in (state.params, state.ema))
    read = {
        f"vlm/{modality}_encoder/{path}": value
        for modality in encoders.MODALITIES
        for path, value in encoders.read(config, modality).parameters.items()
    }
    assert read.keys() < found.keys()
    for path, value in found.items():
        np.testing.assert_array_equal(value, read.get(path, fresh[path]), err_msg=path)
        np.testing.assert_array_equal(average[path], value)
    told = json.loads((tmp_path / encoders.FILE).read_text())
    assert told["text"]["fresh"] == [] and told["image"]["folded"] == [
        "layer scale",
        "positions of 16 patches resized to 8 x 8",
    ]
    assert told["text"]["ignored"] == ["pooler.dense.bias", "pooler.dense.weight"]
    assert "the text encoder starts from " in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_from_the_command_line_goes_on_and_names_its_encoders(text_folder, cli, tmp_path):
    flags = toy_flags(
        steps=4, init__image=str(FOLDER / "vit"), init__text=str(text_folder), evaluation__extra_splits="()"
    )
    left_out = ("width", "heads", "depth", "patch", "image_cell")
    flags = [flag for flag in flags if flag.split("=")[0].rpartition(".")[2] not in left_out]
    command = ["--config=configs/pretrain.py", *flags, "--config.masking.image_cell=1"]
    process = cli(*command, f"--workdir={tmp_path / 'run'}")
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    started = result["protocol"]["initialised_from"]
    assert started["image"]["family"] == "vit" and started["text"]["family"] == "bert"
    assert (
        set(started["image"]["sha256"]) == {"model.safetensors"}
        and len(started["image"]["sha256"]["model.safetensors"]) == 64
    )
    written = json.loads((tmp_path / "run" / "config.json").read_text())["model"]
    assert (written["image"]["eps"], written["fusion"]["width"], written["text"]["vocab_size"]) == (1e-12, 16, 40)
    again = cli(*command, f"--workdir={tmp_path / 'run'}")
    assert again.returncode == 0 and "this run is finished" in again.stdout
    moved = [flag.replace(str(text_folder), "moved/away") for flag in command]
    again = cli(*moved, f"--workdir={tmp_path / 'run'}")
    assert again.returncode == 0 and "this run is finished" in again.stdout, again.stderr
    process = cli(*command, "--config.model.text.depth=3", f"--workdir={tmp_path / 'other'}")
    assert process.returncode == 2 and not (tmp_path / "other").exists()
    assert process.stderr.startswith("error: model.text.depth is 3 by a flag, ") and process.stderr.count("\n") == 1


def test_a_size_of_encoders_is_theirs(text_folder, tmp_path):
    structure = "size=encoders,data=flickr8k"
    with pytest.raises(UserError, match=r"the size of model\.image is that of an encoder; set --config"):
        encoders.complete(pretrain.get_config(structure), ())
    config = pretrain.get_config(structure)
    config.init.image, config.init.text = str(FOLDER / "dinov2"), str(text_folder)
    config.model.text.max_length = 9
    encoders.complete(config, ())
    rules.check(config)
    blocks = [config.model.image, config.model.text, config.model.fusion, config.objectives.masked_image.decoder]
    assert [(block.width, block.heads) for block in blocks] == [(16, 2)] * 4
    # A run that starts from such a run has what its workdir says of the encoders.
    values = {name: {"values": encoders.values_of(encoders.family_of(config, name))} for name in encoders.MODALITIES}
    (tmp_path / encoders.FILE).write_text(json.dumps(values))
    tuned = finetune_retrieval.get_config(structure)
    tuned.checkpoint = str(tmp_path)
    encoders.complete(tuned, ())
    assert (tuned.model.image.patch, tuned.model.image.width, tuned.model.text.vocab_size) == (4, 16, 40)
    # And so has one that starts from that one, whose workdir says what the model is.
    (tmp_path / encoders.FILE).unlink()
    (tmp_path / "config.json").write_text(json.dumps(plain_values.to_json(tuned)))
    again = finetune_retrieval.get_config(structure)
    again.checkpoint = str(tmp_path)
    encoders.complete(again, ())
    assert plain_values.to_json(again)["model"] == plain_values.to_json(tuned)["model"]
    # One of the two: the other is as wide.
    config = pretrain.get_config(structure)
    config.init.image = str(FOLDER / "dinov2")
    encoders.complete(config, ())
    rules.check(config)
    assert (config.model.text.width, config.model.text.heads, config.model.text.depth) == (16, 2, 6)
