"""Long proofs: `python -m pytest -m slow tests/test_long.py`, about half an hour on two CPU cores."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from configs import pretrain
from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.models.pretrained.families import bert
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime import sharding
from maskvlm_jax.runtime.parameters import parameter_path
from maskvlm_jax.serving.exports import encoder_folders
from maskvlm_jax.training import build, train_step
from tests.conftest import toy_config
from tests.training.resuming import finish, same_as_straight, start, wait_for
from tests.training.steps import one_device, share_apart, train

pytestmark = pytest.mark.slow


def metrics_of(workdir) -> dict:
    return json.loads((workdir / "result.json").read_text())["metrics"]


def train_lines(workdir) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_the_default_run_learns_what_the_readme_says(cli, tmp_path):
    workdir = tmp_path / "run"
    process = cli("--config=configs/pretrain.py", f"--workdir={workdir}", timeout=1800)
    assert process.returncode == 0, process.stderr
    found = metrics_of(workdir)
    assert min(found["rerank_t2i_r1"], found["rerank_i2t_r1"]) >= 96
    assert found["rerank_mean_recall"] > found["mean_recall"] >= 96
    assert found["novel/rerank_mean_recall"] >= 89
    assert found["masked_text_accuracy_gain_low"] >= 40
    assert found["masked_image_psnr_gain_low"] >= 3  # decibel: objects stand where their captions say
    for baseline in ("masked_text_accuracy_neighbours", "masked_image_psnr_blend"):
        matched = f"{baseline.rsplit('_', 1)[0]}_matched"
        assert found[matched] > found[baseline]


def test_64_pairs_are_learned_by_heart(cli, tmp_path):
    workdir = tmp_path / "run"
    flags = {
        "data.limit": 64,
        "evaluation.split": "train",
        "evaluation.validation_split": "train",
        "evaluation.limit": 64,
        "evaluation.captions_per_image": 1,
        "evaluation.extra_splits": "()",
        "steps": 300,
        "eval_every": 300,
        "optim.weight_decay": 0.0,
    }
    process = cli(
        "--config=configs/pretrain.py",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in flags.items()),
        timeout=1800,
    )
    assert process.returncode == 0, process.stderr
    found, lines = metrics_of(workdir), train_lines(workdir)
    assert found["i2t_r1"] == found["t2i_r1"] == 100.0
    for name in ("masked_image", "masked_text", "contrastive", "matching"):
        assert lines[-1][f"{name}/loss"] < 0.5 * lines[0][f"{name}/loss"], name


def base_steps(cli, workdir, **values) -> str:
    """What two steps of the paper's model print."""
    flags = {
        "steps": 2,
        "batch_size": 2,
        "log_every": 1,
        "optim.warmup_steps": 1,
        "evaluation.limit": 2,
        "evaluation.batch_size": 2,
        "evaluation.extra_splits": "()",
        "evaluation.rerank_k": 1,
        "keep_checkpoints": 1,
    } | {name.replace("__", "."): value for name, value in values.items()}
    process = cli(
        "--config=configs/pretrain.py:size=base",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in flags.items()),
        timeout=1800,
    )
    assert process.returncode == 0, process.stderr
    assert [line["step"] for line in train_lines(workdir)] == [2]
    return process.stdout


def test_a_step_of_the_paper_s_model_runs_on_a_cpu(cli, tmp_path):
    assert "334,187,612 parameters" in base_steps(cli, tmp_path / "run")


def write_base_encoders(folder: Path) -> None:
    """Random folders of the shapes of google/vit-base-patch16-224 and roberta-base, and a tokenizer for the latter."""
    config = pretrain.get_config("size=base")
    config.model.text.max_length = 512
    shapes = nnx.eval_shape(lambda: Learner(**build.model_arguments(config), rngs=nnx.Rngs(0)))
    params, rng = train_step.split_model(shapes)[1]["vlm"], np.random.default_rng(0)

    def random(name: str) -> dict[str, np.ndarray]:
        leaves = jax.tree_util.tree_leaves_with_path(params[name])
        draw = lambda shape: 0.02 * rng.standard_normal(shape.shape, np.float32)  # noqa: E731
        return {parameter_path(path): draw(shape) for path, shape in leaves}

    image = encoder_folders.image_folder(config.model.image, random("image_encoder"))
    text = encoder_folders.text_folder(config.model.text, random("text_encoder"), pad_id=1)
    roberta = {"model_type": "roberta", "max_position_embeddings": 514, "type_vocab_size": 1}
    # RoBERTa counts positions from the padding's number on, and has one token type.
    position, types = bert.ARRAYS["position"], bert.TOKEN_TYPES
    unused = np.zeros((2, config.model.text.width), np.float32)
    arrays = text.arrays | {position: np.concatenate([unused, text.arrays[position]]), types: text.arrays[types][:1]}
    for name, described, kept in (("vit", image.config, image.arrays), ("roberta", text.config | roberta, arrays)):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(described))
        save_file(kept, folder / name / "model.safetensors")
    counts = [sum(value.size for value in one.values()) for one in (image.arrays, arrays)]
    assert counts == [85_798_656, 124_055_040]  # what the two on the hub have without poolers and heads
    tokenizers.save(tokenizers.train_wordpiece(["a red square"], 64), folder / "tokenizer")


def test_the_paper_s_model_starts_from_its_encoders(cli, tmp_path):
    write_base_encoders(tmp_path)
    inits = {"init__image": tmp_path / "vit", "init__text": tmp_path / "roberta"}
    told = base_steps(cli, tmp_path / "run", **inits, data__tokenizer=tmp_path / "tokenizer")
    assert "334,187,612 parameters" in told
    assert "the image encoder starts from" in told and "folded in: token type 0, offset of the positions" in told


@pytest.mark.parametrize("recipe", ["mlim", "mamo", "albef", "clip", "m3ae"])
def test_a_recipe_killed_and_resumed_equals_its_straight_run_and_scores_the_same_alone(
    recipe, cli, cli_environment, tmp_path
):
    flags = {
        "steps": 6,
        "batch_size": 16,
        "log_every": 1,
        "eval_every": 3,
        "checkpoint_every": 2,
        "optim.warmup_steps": 2,
        "data.tokenizer_captions": 300,
        "evaluation.limit": 24,
        "evaluation.batch_size": 24,
        "evaluation.figures": 3,
        "evaluation.extra_splits": "()",
    }
    command = [
        f"--config=configs/pretrain.py:recipe={recipe}",
        *(f"--config.{name}={value}" for name, value in flags.items()),
    ]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    process = cli(*command, f"--workdir={straight}")
    assert process.returncode == 0, process.stderr
    figures = {path.name for path in (straight / "figures").iterdir()}
    assert ("reconstruction_test.png" in figures) == (recipe in ("mlim", "mamo", "m3ae"))
    assert ("masked_text_test.png" in figures) == (recipe != "clip")

    running = start(killed, cli_environment, *command)
    wait_for(running, "step 4")
    running.kill()
    finish(running)
    process = cli(*command, f"--workdir={killed}")
    assert process.returncode == 0, process.stderr
    assert "a new run" not in process.stdout
    same_as_straight(killed, straight)

    process = cli("--config=configs/evaluate.py", f"--config.checkpoint={straight}")
    assert process.returncode == 0, process.stderr
    assert metrics_of(straight / "evaluation") == metrics_of(straight)

    tuned = tmp_path / "tuned"
    process = cli(
        f"--config=configs/finetune_retrieval.py:recipe={recipe}",
        f"--workdir={tuned}",
        f"--config.checkpoint={straight}",
        *(flag for flag in command[1:]),
        "--config.evaluation.match_images=12",
    )
    assert process.returncode == 0, process.stderr
    assert {"mean_recall", "match_mean_recall"} & metrics_of(tuned).keys()


@pytest.mark.parametrize("recipe", ["mlim", "mamo", "albef", "clip", "m3ae"])
def test_eight_devices_give_a_recipe_the_losses_and_parameters_of_one(recipe):
    config = toy_config(f"recipe={recipe}", masking__image_cell=1)
    state, told = train(config, one_device())
    sharded, losses = train(config, sharding.make_mesh(data=2, fsdp=2, model=2))
    for ours, theirs in zip(losses, told, strict=True):
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=2e-4, atol=2e-5)
    assert share_apart(sharded.params, state.params) < 0.01
