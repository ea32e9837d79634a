"""A grid runs every row with every seed once, goes on where it stopped, and its tables say what the runs said."""

import contextlib
import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import ablations
from maskvlm_jax.ablate import ablation
from maskvlm_jax.runtime.errors import UserError


def small_grid(**values):
    config = ablations.get_config("table=masking")
    with config.unlocked():
        for name, value in ({"seeds": (0, 1, 2), "steps": 3} | values).items():
            config[name] = value
    return config


class Trainer:
    """Stands in for training: writes the result that a command would, and remembers the command."""

    def __init__(self, stop_after: int = 100):
        self.commands, self._stop_after = [], stop_after

    def __call__(self, flags: list[str], log: Path) -> None:
        if len(self.commands) == self._stop_after:
            raise KeyboardInterrupt
        self.commands.append(flags)
        given = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
        recall = 10.0 * int(given["config.seed"]) + ("both" in given["workdir"])
        workdir = Path(given["workdir"])
        workdir.mkdir(parents=True)
        metrics = {"mean_recall": recall, "t2i_r1": recall / 2, "other": 1.0}
        (workdir / "result.json").write_text(json.dumps({"metrics": metrics, "protocol": {}}))


class FakeCommands(Trainer):
    def __init__(self, parallel: int, compiled: Path):
        super().__init__()

    def stopping(self):
        return contextlib.nullcontext()

    def stop(self):
        pass


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_every_row_has_every_seed_and_the_tables_say_what_the_runs_said(tmp_path, capsys):
    trainer = Trainer()
    ablation.run_grid(small_grid(), tmp_path, trainer)
    assert len(trainer.commands) == 6
    rows = rows_of(tmp_path / "table.csv")
    assert [(row["row"], row["seed"]) for row in rows] == [
        (name, seed) for name in ("one modality at a time", "both at once") for seed in "012"
    ]
    assert [float(row["mean_recall"]) for row in rows] == [0, 10, 20, 1, 11, 21]
    assert "other" not in rows[0]
    text = (tmp_path / "table.md").read_text()
    assert "| both at once | 3 | 5.5 ± 5.0 | 11.0 ± 10.0 |" in text
    assert np.asarray(Image.open(tmp_path / "plot.png")).std() > 0
    assert "[6/6] both at once, seed 2: mean_recall 21.0" in capsys.readouterr().out


def test_a_grid_that_was_stopped_goes_on_where_it_was(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ablation.run_grid(small_grid(), tmp_path, Trainer(stop_after=2))
    assert len(rows_of(tmp_path / "table.csv")) == 2
    trainer = Trainer()
    ablation.run_grid(small_grid(), tmp_path, trainer)
    assert len(trainer.commands) == 4
    assert len(rows_of(tmp_path / "table.csv")) == 6


def test_runs_side_by_side_fill_the_same_tables(tmp_path):
    for parallel in (1, 3):
        ablation.run_grid(small_grid(parallel=parallel), tmp_path / str(parallel), Trainer())
    assert (tmp_path / "1" / "table.csv").read_text() == (tmp_path / "3" / "table.csv").read_text()


def test_rows_differ_in_their_own_flags_alone(tmp_path):
    one, both = (run.commands["pretrain"] for run in ablation.runs(small_grid(seeds=(7,)), tmp_path))
    assert {flag for flag in one if flag not in both} == {
        f"--workdir={tmp_path}/one_modality_at_a_time/seed7/pretrain",
        "--config.objectives.masked_image.other=clean",
        "--config.objectives.masked_text.other=clean",
    }
    assert "--config.seed=7" in both
    assert "--config.steps=3" in both


def test_fine_tuning_starts_from_its_own_row_and_is_named(tmp_path):
    config = small_grid(seeds=(0,), finetune_steps=20)
    trainer = Trainer()
    ablation.run_grid(config, tmp_path, trainer)
    assert f"--config.checkpoint={tmp_path}/both_at_once/seed0/pretrain" in trainer.commands[3]
    assert float(rows_of(tmp_path / "table.csv")[1]["ft_mean_recall"]) == 1.0
    assert (tmp_path / "table.md").read_text().count("| 1.0 |") == 2  # one seed: no deviation


def test_a_row_may_be_scored_by_an_evaluation_of_its_checkpoint(tmp_path):
    config = ablations.get_config("table=pictures")
    runs = list(ablation.runs(config, tmp_path))
    assert all(list(run.commands) == ["pretrain", "score"] for run in runs) and len(runs) == 18
    score = runs[0].commands["score"]
    assert score[0] == "--config=configs/finetune.py:task=linear_probe"
    assert score[2] == f"--config.checkpoint={tmp_path}/48_pixels_HOG/seed0/pretrain"
    for stage, name in (("pretrain", "masked_patches_explained"), ("score", "linear_probe_shape_accuracy")):
        (runs[0].folder / stage).mkdir(parents=True)
        (runs[0].folder / stage / "result.json").write_text(json.dumps({"metrics": {name: 1.0}}))
    assert ablation.scores_of(runs[0]) == {"masked_patches_explained": 1.0, "linear_probe_shape_accuracy": 1.0}
    assert ablation.scores_of(runs[1]) is None


def test_a_folder_of_another_grid_is_refused_and_more_seeds_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "Commands", FakeCommands)
    ablation.run(small_grid(seeds=(0,)), tmp_path)
    ablation.run(small_grid(seeds=(0, 1)), tmp_path)
    with pytest.raises(UserError, match="other values of steps"):
        ablation.run(small_grid(steps=4), tmp_path)


def test_a_run_that_fails_is_told_with_its_log(tmp_path):
    with pytest.raises(UserError, match=r"pretrain.log: error: there is no config key"):
        ablation.Commands(1, tmp_path)(
            ["--config=configs/pretrain.py", "--config.nothing=1"], tmp_path / "pretrain.log"
        )


def test_a_refused_grid_claims_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "Commands", FakeCommands)
    with pytest.raises(UserError, match=r"two runs would be in .*seed0; give every one of --config.seeds"):
        ablation.run(small_grid(seeds=(0, 0)), tmp_path / "grid")
    assert not (tmp_path / "grid").exists()
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "grid.json").write_text("{}")  # of a command that began no run
    monkeypatch.setattr(ablation, "run_grid", lambda config, workdir, *rest: (workdir / "table.md").write_text(""))
    ablation.run(small_grid(), tmp_path / "grid")
    (tmp_path / "grid" / "row" / "seed0").mkdir(parents=True)  # with the log of a run that was refused
    ablation.run(small_grid(), tmp_path / "grid")
    run = tmp_path / "grid" / "row" / "seed0" / "pretrain"
    (run / "checkpoints" / "2").mkdir(parents=True)
    with pytest.raises(UserError, match=r"other values of steps; use another --workdir, or .*: --config.steps=3"):
        ablation.run(small_grid(steps=4), tmp_path / "grid")
