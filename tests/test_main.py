"""The command line as a user types it."""

import json
import shutil
import signal
import subprocess
import sys

import pytest

from maskvlm_jax import main
from tests.conftest import ROOT, toy_flags

PRETRAIN = "--config=configs/pretrain.py"


def test_the_main_job_leaves_a_workdir_one_can_look_at(finished_run):
    workdir, told = finished_run
    names = {path.name for path in workdir.iterdir()}
    assert {"config.json", "checkpoints", "best", "metrics.jsonl", "events", "figures", "result.json"} <= names
    assert {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in (workdir / "tokenizer").iterdir()}
    figures = {path.name for path in (workdir / "figures").iterdir()}
    assert figures == {"reconstruction_test.png", "masked_text_test.png", "masked_text_test.md"}
    for word in ("pairs/s", "data wait", "left", "rerank_mean_recall", str(workdir)):
        assert word in told


def test_metrics_have_a_line_for_every_logged_step(finished_run):
    lines = [json.loads(line) for line in (finished_run[0] / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in train] == [2, 3, 4, 5, 6]  # the first step compiles and is told by itself
    expected = {f"{name}/loss" for name in ("masked_image", "masked_text", "contrastive", "matching")}
    assert all(expected | {"loss", "grad_norm", "lr", "data_wait", "pairs_per_second"} <= set(line) for line in train)
    assert [line["step"] for line in lines if line["split"] == "val"] == [3, 6]
    assert [line["step"] for line in lines if line["split"] == "test"] == [6]


def test_the_best_checkpoint_is_the_one_that_val_chose(finished_run):
    lines = [json.loads(line) for line in (finished_run[0] / "metrics.jsonl").read_text().splitlines()]
    val = {line["step"]: line["mean_recall"] for line in lines if line["split"] == "val"}
    assert [path.name for path in (finished_run[0] / "best").iterdir()] == [str(max(val, key=val.get))]


def test_result_names_metrics_and_protocol(finished_run):
    result = json.loads((finished_run[0] / "result.json").read_text())
    recalls = [f"{prefix}{way}_r{k}" for prefix in ("", "rerank_") for way in ("i2t", "t2i") for k in (1, 5, 10)]
    assert set(recalls) | {"mean_recall", "rerank_mean_recall", "novel/mean_recall"} <= set(result["metrics"])
    assert len(result["protocol"]["parameters_sha256"]) == len(result["protocol"]["data_sha256"]) == 64
    assert {"checkpoint", "split", "images", "captions_per_image", "rerank_k", "rerank_score", "image_size"} <= set(
        result["protocol"]
    )


def test_evaluating_alone_gives_the_run_s_own_metrics_digit_for_digit(cli, finished_run):
    workdir, _ = finished_run
    process = cli("--config=configs/evaluate.py", f"--config.checkpoint={workdir}")
    assert process.returncode == 0, process.stderr
    alone = json.loads((workdir / "evaluation" / "result.json").read_text())
    own = json.loads((workdir / "result.json").read_text())
    assert alone["metrics"] == own["metrics"]
    assert alone["protocol"] == own["protocol"]


def test_a_finished_run_is_not_trained_again(cli, finished_run):
    workdir, _ = finished_run
    before = json.loads((workdir / "result.json").read_text())
    process = cli(PRETRAIN, f"--workdir={workdir}", *toy_flags())
    assert process.returncode == 0, process.stderr
    assert json.loads((workdir / "result.json").read_text()) == before
    assert "this run is finished" in process.stdout
    assert "first step" not in process.stdout


BAD_FLAGS = [
    (["--config.optm.lr=1"], "did you mean optim.lr?"),
    (["--config.optim.encodr_lr=1"], "did you mean optim.encoder_lr?"),
    (["--config.steps=1.5"], "--config.steps=1.5"),
    (["--confg=x"], "Did you mean: config"),
    (["steps=3"], "unknown argument 'steps=3'"),
    (["--config.model.image.patch=7"], "patch 7 does not divide model.image.image_size 48"),
    (["--config.masking.image_cell=2"], "masking.image_cell 2 does not divide the 3 x 3 grid"),
    (["--config.model.text.heads=3"], "model.text.heads 3 does not divide its width 128"),
    (["--config.objectives.masked_image.decoder.heads=5"], "masked_image.decoder.heads 5 does not divide its width"),
    (["--config.model.text.width=64"], "widths must be equal, they are model.image.width 128, model.text.width 64"),
    (["--config.masking.text_ratio=1.2"], "masking.text_ratio is 1.2"),
    (["--config.batch_size=200000"], "batch_size 200000 is larger than the data, 100000 examples"),
    (["--config.mesh.fsdp=3"], "fsdp=3 x model=1 does not cover 1 device"),
    (["--config.optim.accumulate=3"], "batch_size 64 is not divisible by 1 device share(s) x 3 accumulation"),
    (["--config.objectives.masked_image.norm=l3"], "choose among l1, l2"),
    (["--config.evaluation.split=tset"], "there is no split 'tset'"),
    (["--config.evaluation.weights=ema"], "set --config.optim.ema_decay=0.999"),
    (["--config.evaluation.batch_size=0"], "evaluation.batch_size is 0; give at least 1"),
    (["--config.optim.accumulate=0"], "optim.accumulate is 0; give at least 1"),
    (["--config.evaluation.rerank_score=best"], "choose among auto, itm, itm+itc, itm+cosine"),
    (["--workdir=/dev/null/run"], "workdir /dev/null/run cannot be written"),
]


@pytest.mark.parametrize("flags, told", BAD_FLAGS, ids=[flags[0] for flags, _ in BAD_FLAGS])
def test_a_bad_flag_is_one_clear_line_and_status_2(cli, tmp_path, flags, told):
    workdir = [] if flags[0].startswith("--workdir") else [f"--workdir={tmp_path / 'run'}"]
    process = cli(PRETRAIN, *workdir, *flags)
    assert process.returncode == 2
    assert told in process.stderr
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--config", "configs/pretrain.py", "--config.optm.lr=1"],
        ["-config=configs/pretrain.py", "-config.optm.lr=1"],
        ["-config", "configs/pretrain.py:size=mini", "--config.optm.lr", "1"],
    ],
    ids=" ".join,
)
def test_a_typo_is_told_however_the_flags_are_written(cli, flags):
    process = cli(*flags)
    assert process.returncode == 2
    assert process.stderr == "error: there is no config key optm.lr; did you mean optim.lr?\n"


@pytest.mark.parametrize(
    ("structure", "flag", "steps", "epochs"),
    [("", "steps=40", 40, 0.0), ("", "epochs=2", 3_125, 2.0), (":size=base,data=coco", "steps=40", 40, 0.0)],
)
def test_a_length_needs_one_flag_alone(structure, flag, steps, epochs):
    command = [sys.executable, "-m", "tests.settings.resolved_length", PRETRAIN + structure, f"--config.{flag}"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert process.stdout == f"{steps} {epochs} {steps // 10}\n", process.stderr


@pytest.mark.parametrize(
    "config, told",
    [
        ("configs/pretrain.py:size=tin", "--config has no size=tin; choose among tiny,"),
        ("configs/pretrain.py:sise=tiny", "--config has no structure 'sise'; choose among recipe, size, data"),
        ("configs/pretran.py", "there is no config file 'configs/pretran.py'"),
        ("configs/pretrain.py:data=flickr8k", "data root 'data/flickr8k' is not a folder; set --config.data.root="),
        ("configs/evaluate.py", "set --config.checkpoint to the folder of a run"),
    ],
)
def test_a_bad_config_is_one_clear_line_and_status_2(cli, config, told):
    process = cli(f"--config={config}")
    assert process.returncode == 2
    assert told in process.stderr and process.stderr.count("\n") == 1


def test_ctrl_c_while_a_run_starts_is_one_line(monkeypatch, capsys):
    def interrupted(argv, *, tasks):
        raise KeyboardInterrupt

    monkeypatch.setattr(main.command_line, "parse", interrupted)
    assert main.main([]) == 130
    assert capsys.readouterr().out == "SIGINT: stopped; the same command goes on\n"


def test_a_workdir_of_another_run_is_refused_with_the_keys_that_differ(cli, copy_of_run):
    before = (copy_of_run / "config.json").read_text()
    process = cli(PRETRAIN, f"--workdir={copy_of_run}", *toy_flags(optim__lr=0.5, log_every=2))
    assert process.returncode == 2
    assert "other values of optim.lr;" in process.stderr
    assert (copy_of_run / "config.json").read_text() == before


def test_evaluating_a_step_that_is_not_there_names_those_that_are(cli, finished_run):
    process = cli(
        "--config=configs/evaluate.py", f"--config.checkpoint={finished_run[0]}", "--config.checkpoint_step=5"
    )
    assert process.returncode == 2
    assert "takes latest, best and 3, 4, 6" in process.stderr


@pytest.mark.slow
def test_fine_tuning_starts_from_the_best_checkpoint_where_it_is_asked_to(cli, copy_of_run, tmp_path):
    flags = [flag for flag in toy_flags(steps=2, optim__warmup_steps=1) if ".masked_image." not in flag]
    command = ["--config=configs/finetune_retrieval.py", *flags]
    command += [f"--config.checkpoint={copy_of_run}", f"--workdir={tmp_path / 'tuned'}"]
    process = cli(*command, "--config.checkpoint_step=78")
    assert process.returncode == 2 and "--config.checkpoint_step takes latest, best and 3, 4, 6" in process.stderr
    assert not (tmp_path / "tuned").exists()
    shutil.rmtree(copy_of_run / "checkpoints")  # the best alone is left
    process = cli(*command, "--config.checkpoint_step=best")
    assert process.returncode == 0, process.stderr
    told = json.loads((tmp_path / "tuned" / "result.json").read_text())["protocol"]
    assert told["initialised_from"] == f"{copy_of_run} best"


def test_help_tells_flags_and_the_values_of_a_config(cli):
    process = cli("--help")
    assert (process.returncode, process.stderr) == (0, "")
    assert "--workdir " in process.stdout and "python -m maskvlm_jax.main --config=" in process.stdout
    process = cli("--config=configs/pretrain.py:size=mini", "--help")
    assert process.returncode == 0 and "  model.image.image_size = " in process.stdout
    process = cli("--config=configs/none.py", "--help")
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)


def test_more_epochs_than_steps_can_be_counted_are_refused(cli, tmp_path):
    process = cli("--config=configs/pretrain.py", "--config.epochs=1e300", f"--workdir={tmp_path / 'run'}")
    assert (process.returncode, process.stderr.count("\n")) == (2, 1) and "give fewer" in process.stderr


def test_a_checkpoint_that_cannot_be_read_names_those_that_may(cli, copy_of_run, tmp_path):
    steps = sorted(int(folder.name) for folder in (copy_of_run / "checkpoints").iterdir() if folder.name.isdigit())
    shutil.rmtree(copy_of_run / "checkpoints" / str(steps[-1]) / "params")
    flags = [f"--config.checkpoint={copy_of_run}", f"--workdir={tmp_path / 'scored'}"]
    process = cli("--config=configs/evaluate.py", *flags)
    others = " or ".join(map(str, steps[:-1]))
    assert (process.returncode, process.stderr.count("\n")) == (2, 1), process.stderr
    assert (
        process.stderr.endswith(f"; set --config.checkpoint_step to {others}\n") and not (tmp_path / "scored").exists()
    )


def test_a_flag_that_has_another_name_now_is_told_the_new_one(cli):
    process = cli(PRETRAIN, "--config.model.fusion.patches=9")
    assert process.stderr.endswith(
        " model.fusion.patches any more; it is not given: the fusion has it from the encoders\n"
    )
    process = cli(PRETRAIN, "--config.evaluation.also=()")
    assert process.returncode == 2
    assert process.stderr == "error: there is no config key evaluation.also any more; it is evaluation.extra_splits\n"


def test_output_that_nobody_reads_any_more_is_no_error(cli_environment):
    """As of `... --help | head`."""
    command = [sys.executable, "-m", "maskvlm_jax.main", "--config=configs/pretrain.py", "--help"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=cli_environment, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE
