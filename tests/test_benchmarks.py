"""The benchmarks run and tell what they promise; how fast anything is is not looked at."""

import argparse
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import compare_torch, loss_gradients, rerank, search, serving, shapes, train_step
from configs import pretrain
from maskvlm_jax.objectives.masked_positions import masked_token_capacity
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import plain_values
from tests.conftest import ROOT, TOY

TOWERS = ["image encoder", "text encoder", "fusion", "decoder", "heads"]


PARTS = ["image_encoder", "text_encoder", "memory", "contrastive", "masked_image", "masked_text", "matching"]


TEXT_STAGES = ["tokenise", "masks", "whole example"]


def pictures(benchmark, *flags: str) -> subprocess.CompletedProcess:
    return benchmark("input_pipeline.py", "--pictures", 16, "--repeats", 1, *flags)


def test_train_step_tells_positive_numbers(benchmark):
    values = {name: value for name, value in TOY.items() if name.startswith(("model.", "objectives."))}
    values |= {"model.fusion.depth": 1, "model.shared.unroll": True}  # the least to compile
    settings = [flag for name, value in values.items() for flag in ("--set", f"{name}={value}")]
    process = benchmark("train_step.py", "--batch-size", 8, "--steps", 2, "--json", *settings)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert list(result["parameters"]) == TOWERS
    assert list(result["forward_gflop_per_pair"]) == PARTS
    assert (result["batch_size"], result["steps"], result["dtype"]) == (8, 2, "float32")
    positive = [
        *result["parameters"].values(),
        *result["forward_gflop_per_pair"].values(),
        *result["step_seconds"].values(),
        *(result[f"{name}_seconds"] for name in ("trace", "compile")),
        *(result[name] for name in ("devices", "cores", "training_gflop_per_pair", "pairs_per_second", "gflops")),
        *(result[name] for name in ("matmul_side", "matmul_gflops", "matmul_ratio", "host_peak_mib")),
    ]
    assert all(value > 0 for value in positive), result
    step = result["step_seconds"]
    assert step["min"] <= step["median"] <= step["max"]
    assert result["pairs_per_second"] == pytest.approx(8 / step["median"])
    assert result["gflops"] == pytest.approx(result["pairs_per_second"] * result["training_gflop_per_pair"])
    check_table(train_step.table(result))


def check_table(table: str) -> None:
    names = [line[:20].strip() for line in table.splitlines()]
    before, after = ["device", "batch size", "parameters"], ["training", "trace", "compile", "step", "speed"]
    last = ["achieved", "matmul", "achieved / matmul", "host memory", "device memory"]
    assert names == [*before, *TOWERS, "forward", *PARTS, *after, *last]


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("model.image.widht=32", "did you mean model.image.width"),
        ("model.image.width", "KEY=VALUE"),
        ("model.image.width=wide", "model.image.width is a int"),
        ("model.image=3", "there is no config key model.image"),
    ],
)
def test_a_wrong_setting_is_told(setting, told):
    with pytest.raises(UserError, match=told):
        train_step.set_values(pretrain.get_config(), [setting])


def test_settings_of_every_type():
    config = pretrain.get_config()
    train_step.set_values(
        config,
        [
            *("name=a=b", "optim.lr=1", "model.shared.unroll=True", "data.text_buckets=(8, 16)"),
            *("model.shared.dtype=bfloat16", "masking.image_ratio=0.5"),
        ],
    )
    assert (config.name, config.optim.lr, config.model.shared.unroll) == ("a=b", 1.0, True)
    assert (config.data.text_buckets, config.model.shared.dtype) == ((8, 16), "bfloat16")
    assert config.masking.image_ratio == 0.5


def test_train_step_tells_a_config_that_does_not_fit_in_one_line(benchmark):
    process = benchmark("train_step.py", "--set", "model.image.width=48")
    assert (process.returncode, len(process.stderr.splitlines())) == (2, 1)
    assert "widths must be equal" in process.stderr


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_captions_take_from_half_the_length_to_all_of_it(name):
    config = train_step.shape_config(name)
    batch, length = train_step.synthetic_batch(config), config.model.text.max_length
    lengths_B = batch["token_valid"].sum(axis=1)
    assert length // 2 <= lengths_B.min() < lengths_B.max() <= length
    np.testing.assert_array_equal(batch["token_valid"], batch["tokens"] != shapes.PAD)
    masked_BL = batch["text_masked"]
    assert np.all(batch["tokens"][masked_BL] >= shapes.FIRST_WORD)
    np.testing.assert_array_equal(masked_BL, batch["tokens_masked"] == shapes.MASK)
    assert masked_BL.sum(axis=1).min() >= 1
    assert masked_BL.sum(axis=1).max() <= masked_token_capacity(length, config.masking.text_ratio)


def test_a_shape_sets_what_it_says():
    config = train_step.shape_config("torch-small")
    there = plain_values.flatten(config.to_dict())
    settings = shapes.SHAPES["torch-small"].settings()
    assert {key: there[key] for key in settings} == settings


def printing(text: str) -> list[str]:
    return [sys.executable, "-c", f"print('a line before'); print({text!r})"]


def test_compare_torch_takes_the_ratio_round_by_round():
    args = argparse.Namespace(shape="torch-tiny", rounds=2, steps=3)
    counts = {"batch_size": 4, "device": "cpu", "cores": 2, "dtype": "float32", "training_gflop_per_pair": 5.0}
    ours = [counts | {"gflops": 5.0 * rate, "matmul_gflops": 100, "matmul_ratio": rate / 20} for rate in (8, 10)]
    rounds = {
        "ours": [
            compare_torch.measure(printing(json.dumps({"rate": rate, **printed})), "rate", dict(os.environ))
            for rate, printed in zip((8, 10), ours, strict=True)
        ],
        "torch": [compare_torch.measure(printing(f'{{"rate": {rate}}}'), "rate", dict(os.environ)) for rate in (4, 1)],
    }
    assert all(measured.peak_mib > 1 and measured.seconds > 0 for side in rounds.values() for measured in side)
    result = compare_torch.summary(args, rounds)
    assert result["ratio"] == {"median": 6.0, "min": 2.0, "max": 10.0}
    _, head, *rows = compare_torch.table(result).splitlines()
    assert head.split() == ["ours", "torch"]
    assert rows[0].split() == ["pairs/s", "9", "(8-10)", "2.5", "(1-4)"]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ([sys.executable, "-c", "import no_such_module"], "No module named 'no_such_module'"),
        (printing("{}"), "printed no JSON with rate"),
        (printing("fast"), "printed no JSON with rate"),
        (["/no/such/python"], "No such file"),
    ],
)
def test_compare_torch_tells_of_a_command_that_gives_no_rate(command, told):
    with pytest.raises(UserError, match=told):
        compare_torch.measure(command, "rate", dict(os.environ))


def test_input_pipeline_tells_the_rate_of_every_stage_and_stream(benchmark):
    process = pictures(benchmark, "--data", "scenes", "--threads", 0, 1, "--workers", 0, 1, "--json")
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert list(result["stages"]) == ["draw", "resize", *TEXT_STAGES]
    assert all(value > 0 for stage in result["stages"].values() for value in stage.values())
    assert [(row["workers"], row["threads"]) for row in result["streams"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(row["per_second"] > 0 for row in result["streams"])
    assert [row["per_core"] is None for row in result["streams"]] == [False, False, True, True]


def test_input_pipeline_prints_a_table_of_photographs(benchmark):
    process = pictures(benchmark, "--data", "jpeg", "--threads", 1, "--workers", 0)
    assert process.returncode == 0, process.stderr
    title, head, *rows = process.stdout.splitlines()
    assert "16 pictures, 224 px" in title
    assert head.split() == ["pictures/s", "per", "core", "us/picture"]
    names = ["read", "decode", "resize", "RandAugment", *TEXT_STAGES]
    assert [row[:32].strip() for row in rows] == [*names, "stream, 0 workers, 1 threads"]


def test_input_pipeline_wants_the_folder_of_a_set(benchmark):
    process = pictures(benchmark, "--data", "flickr8k")
    assert (process.returncode, process.stderr) == (2, "error: --data flickr8k needs --root FOLDER\n")


def test_rerank_tells_every_k(benchmark, finished_run):
    process = benchmark("rerank.py", finished_run[0], "--images", 6, "--k", 2, 4, "--json")
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert (result["images"], [row["k"] for row in result["rows"]]) == (6, [2, 4])
    few, many = result["rows"]
    assert 6 * 2 <= few["pairs"] < many["pairs"] <= 6 * result["captions"]
    positive = *(row[name] for row in (few, many) for name in ("seconds", "pairs_per_second")), result["encode_seconds"]
    assert all(value > 0 for value in (*positive, result["bound_pairs_per_second"]))
    assert len(rerank.table(result).splitlines()) == 7  # what was scored, a gap, two of head, none, two of k


@pytest.mark.slow
def test_serving_tells_speed_and_the_time_to_a_first_result(benchmark):
    export = ROOT / "tests" / "reference" / "exports" / "albef"
    process = benchmark("serving.py", export, "--pictures", 5, "--batch-size", 2, "--json")
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert set(result["pictures_per_second"]) == {"reading", "forward", "encode_images"}
    positive = *result["pictures_per_second"].values(), result["first_result_seconds"], result["of_the_slower"]
    assert min(positive) > 0
    assert len(serving.table(result).splitlines()) == 7


@pytest.mark.parametrize("kind", ["few", "uniform"])
def test_search_tells_both_stores_and_what_a_graph_misses(benchmark, kind):
    pytest.importorskip("usearch")
    flags = ("--vectors", 2_000, "--width", 32, "--queries", 5, "--kind", kind)
    process = benchmark("search.py", *flags, "--json")
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert all(0.9 <= graph["recall_at_10"] <= 1 for graph in result["graphs"])
    for ms in (result["exact_ms"], *(graph["ms"] for graph in result["graphs"])):
        assert 0 < ms["min"] <= ms["median"] <= ms["max"]
    assert result["mib"]["vectors.f32"] == 2 * result["mib"]["vectors.f16"] == 2_000 * 32 * 4 / 2**20
    assert len(search.table(result).splitlines()) == 2 + len(result["graphs"]) + 2


@pytest.mark.slow
def test_loss_gradients_tells_every_loss_of_a_run_by_part(benchmark, finished_run):
    process = benchmark("loss_gradients.py", "--run", finished_run[0], "--batches", 1, "--json")
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert result["step"] == 6 and set(result["norms"]) == {"masked_image", "masked_text", "contrastive", "matching"}
    for label, norms in result["norms"].items():
        parts = [value for part, value in norms.items() if part != "all"]
        assert norms["all"] >= (sum(value**2 for value in parts) ** 0.5) * (1 - 1e-5)
        assert min(norms["image encoder"], norms["text encoder"]) > 0, label
        assert (norms["heads"] > 0) == (label != "contrastive")
    assert len(loss_gradients.table(result).splitlines()) == 2 + 2 + 4


def test_loss_gradients_names_a_run_that_is_not_there(benchmark):
    process = benchmark("loss_gradients.py", "--run", "nowhere")
    assert process.returncode == 2 and process.stderr.count("\n") == 1 and "'nowhere'" in process.stderr


def test_rerank_tells_a_run_that_is_not_there_in_one_line(benchmark):
    process = benchmark("rerank.py", "nowhere")
    assert (process.returncode, len(process.stderr.splitlines())) == (2, 1)
    assert "nowhere" in process.stderr


def test_encoders_are_compared_with_what_was_computed_of_their_folders(benchmark, tmp_path):
    folder = ROOT / "tests" / "reference" / "encoders"
    pictures, words = np.load(folder / "vit" / "golden.npz"), np.load(folder / "bert" / "golden.npz")
    outputs = {"pixels": pictures["pixels_16"], "image": pictures["output_16"]}
    outputs |= {"tokens": words["tokens"], "valid": words["valid"], "text": words["output"]}
    np.savez(tmp_path / "outputs.npz", **outputs)
    flags = [f"--image={folder / 'vit'}", f"--text={folder / 'bert'}", f"--compare={tmp_path / 'outputs.npz'}"]
    process = benchmark("encoder_parity.py", *flags)
    assert process.returncode == 0, process.stderr
    for found in json.loads(process.stdout).values():
        assert 0 < found["difference"] < 1e-4 * found["largest"]
    process = benchmark("encoder_parity.py", "--image=nowhere", *flags[1:])
    assert process.returncode == 2 and process.stderr.startswith("error: there is no folder or file 'nowhere'")


def test_savings_are_shares_of_the_step_without_any(benchmark):
    process = benchmark("savings.py", "--shape", "torch-tiny")
    assert process.returncode == 0, process.stderr
    shares = [float(line.split("|")[3].strip(" %")) for line in process.stdout.splitlines()[3:]]
    assert len(shares) == 7 and min(shares) > 0
    assert sum(shares) == pytest.approx(100, abs=0.5)
