"""Long proofs: `python -m pytest -m slow tests/test_long.py`, about half an hour on two CPU cores."""

import json

import pytest

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
    assert found["t2i_r1"] >= 40
    assert found["novel/t2i_r1"] >= 40
    assert found["rerank_mean_recall"] > min(found["mean_recall"] + 5, 90)
    assert found["masked_text_accuracy_matched"] >= 2 * found["masked_text_accuracy_shuffled"]
    assert found["masked_image_psnr_matched"] >= found["masked_image_psnr_shuffled"] + 0.5


def test_64_pairs_are_learned_by_heart(cli, tmp_path):
    workdir = tmp_path / "run"
    flags = {
        "data.limit": 64,
        "evaluation.split": "train",
        "evaluation.during": "train",
        "evaluation.limit": 64,
        "evaluation.captions_per_image": 1,
        "evaluation.also": "()",
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


def test_a_step_of_the_paper_s_model_runs_on_a_cpu(cli, tmp_path):
    workdir = tmp_path / "run"
    flags = {
        "steps": 2,
        "batch_size": 2,
        "log_every": 1,
        "optim.warmup_steps": 1,
        "evaluation.limit": 2,
        "evaluation.batch_size": 2,
        "evaluation.also": "()",
        "evaluation.rerank_k": 1,
        "keep_checkpoints": 1,
    }
    process = cli(
        "--config=configs/pretrain.py:size=base",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in flags.items()),
        timeout=1800,
    )
    assert process.returncode == 0, process.stderr
    assert "334,187,612 parameters" in process.stdout
    assert [line["step"] for line in train_lines(workdir)] == [2]
