"""The task VQA from files as they are released: trained, scored, and scored again from what the run has kept."""

import json
import shutil

import pytest

import maskvlm_jax
from configs import finetune
from maskvlm_jax.data.fields import answers
from maskvlm_jax.data.scenes.questions import ANSWERS
from maskvlm_jax.data.sources.opening import open_source
from maskvlm_jax.serving.exports import exporting
from maskvlm_jax.settings import rules
from maskvlm_jax.training import build
from tests.conftest import toy_config, toy_flags
from tests.data.sources.vqa_files import annotation_of, questions_of, write
from tests.reference import exporting as exports
from tests.reference import vqa_score

NUMBERS, WORDS = ["1", "2", "3"], ["yes", "no", "a red cat"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model to start from."""
    folder = tmp_path_factory.mktemp("trained")
    exports.make_workdir(folder, toy_config())
    return folder


def make_files(root):
    """Twelve pictures to train on, five to score, three of a test."""
    given = {}
    for subset, images in (("train2014", range(1, 13)), ("val2014", range(21, 26))):
        questions = questions_of(images)
        annotations = []
        for number, question in enumerate(questions):
            answers, kind = ([NUMBERS[number % 3]], "number") if number % 2 else ([WORDS[number % 3]], "yes/no")
            given[question["question_id"]] = answers * 8 + ["maybe", "2 dogs"]
            annotations.append(annotation_of(question, given[question["question_id"]], answer_type=kind))
        write(root, subset, questions, annotations)
    write(root, "test2015", questions_of(range(31, 34)))
    return given


def flags_of(task, root, trained):
    flags = [f"--config=configs/finetune.py:task={task},data=files", f"--config.data.root={root}"]
    flags += [flag for flag in toy_flags(steps=3, evaluation__limit=0) if "decoder" not in flag]
    return [*flags, f"--config.checkpoint={trained}", "--config.data.fields.answers.least=2"]


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def test_answers_are_learned_from_files_and_scored_alike_wherever_the_run_is_read(cli, trained, tmp_path):
    root, run = tmp_path / "files", tmp_path / "run"
    root.mkdir()
    given = make_files(root)
    process = cli(*flags_of("vqa", root, trained), f"--workdir={run}")
    assert process.returncode == 0, process.stderr
    metrics = result_of(run)["metrics"]
    assert metrics.keys() == {"vqa_score", "vqa_score_yes_no", "vqa_score_number"}
    config = json.loads((run / "config.json").read_text())
    listed = config["data"]["fields"]["answers"]["answers"]
    assert sorted(listed) == ["1", "2", "3", "no", "red cat", "yes"]  # each of two questions and more; "maybe" of none
    assert config["objectives"]["answers"]["count"] == result_of(run)["protocol"]["answers"] == 6
    rows = json.loads((run / "answers_val.json").read_text())
    assert [row["question_id"] for row in rows] == [image * 1000 + n for image in range(21, 26) for n in range(2)]
    scores = [vqa_score.score(row["answer"], given[row["question_id"]]) for row in rows]
    assert metrics["vqa_score"] == pytest.approx(100 * sum(scores) / len(scores))
    assert "maybe" in (run / "figures" / "answers_val.md").read_text()
    # What was trained on is needed no more.
    (root / "v2_mscoco_train2014_annotations.json").unlink()
    elsewhere = tmp_path / "elsewhere"
    shutil.move(root, elsewhere)
    scored = cli("--config=configs/evaluate.py", f"--config.checkpoint={run}", f"--config.data.root={elsewhere}")
    assert scored.returncode == 0, scored.stderr
    assert result_of(run / "evaluation")["metrics"] == metrics
    told_in_python_are(rows, run, elsewhere)
    exporting.export(str(run), str(tmp_path / "out"))
    told_in_python_are(rows, tmp_path / "out", elsewhere)
    assert json.loads((run / "evaluation" / "answers_val.json").read_text()) == rows
    # A test, whose answers only the server knows.
    flags = [f"--config.checkpoint={run}", f"--config.data.root={elsewhere}", "--config.evaluation.split=test"]
    tested = cli("--config=configs/evaluate.py", *flags, f"--workdir={tmp_path / 'test'}")
    assert tested.returncode == 0, tested.stderr
    assert result_of(tmp_path / "test")["metrics"] == {}
    rows = json.loads((tmp_path / "test" / "answers_test.json").read_text())
    assert len(rows) == 6 and all(row["answer"] in listed for row in rows)


def told_in_python_are(rows, folder, root):
    """Whether `Model.answer` tells what the evaluation wrote."""
    model = maskvlm_jax.load(folder)
    data = model.config.data.to_dict() | {"root": str(root)}
    source = open_source(data, "val", model.image_size)
    asked = [(source[i]["image"], source[i]["captions"][0]) for i in range(len(source))]
    told = model.answer(*map(list, zip(*asked, strict=True)), k=2)
    assert [one[0]["answer"] for one in told] == [row["answer"] for row in rows]
    assert all(first["score"] >= second["score"] for first, second in told)
    assert model.answer(*asked[3])[0] == pytest.approx(told[3][0])


@pytest.mark.slow
def test_answers_as_texts_start_from_the_fusion_and_are_scored(cli, trained, tmp_path):
    given = make_files(tmp_path)
    flags = flags_of("vqa_text", tmp_path, trained)
    flags += [f"--config.objectives.answers.decoder.{key}={value}" for key, value in (("width", 32), ("heads", 2))]
    flags += ["--config.objectives.answers.candidates=4"]
    process = cli(*flags, f"--workdir={tmp_path / 'run'}")
    assert process.returncode == 0, process.stderr
    assert "objectives.answers: decoder/stack starts as a copy of fusion/text_stream" in process.stdout
    rows = json.loads((tmp_path / "run" / "answers_val.json").read_text())
    told_in_python_are(rows, tmp_path / "run", tmp_path)
    scores = [vqa_score.score(row["answer"], given[row["question_id"]]) for row in rows]
    assert result_of(tmp_path / "run")["metrics"]["vqa_score"] == pytest.approx(100 * sum(scores) / len(scores))


def test_scenes_have_their_own_list_and_need_no_flag():
    for task in ("vqa", "vqa_text"):
        config = finetune.get_config(f"task={task}")
        rules.check(config)
        assert tuple(config.data.fields.answers.answers) == ANSWERS
    assert finetune.get_config("task=vqa").objectives.answers.count == len(ANSWERS)


@pytest.mark.parametrize("task", ["vqa", "vqa_text"])
@pytest.mark.parametrize("structure", ["recipe=albef", "recipe=mamo", "recipe=eve", "size=base,data=files"])
def test_a_config_can_be_built_on_any_model_that_fuses(task, structure):
    config = finetune.get_config(f"task={task},{structure}")
    rules.check(config)
    if "files" in structure:
        assert (config.data.source, config.evaluation.split, config.optim.lr) == ("vqa", "val", 2e-5)
        return
    build.parameter_sizes(config)  # which builds the heads
    with pytest.raises(ValueError, match="a mixture is not read by this task"):
        finetune.get_config(f"task={task},data=coco+vg")


def test_a_file_takes_the_place_of_a_list_that_is_there(tmp_path):
    (tmp_path / "list.txt").write_text("red\nblue\n")
    options = {"answers": ("yes", "no", "maybe"), "file": str(tmp_path / "list.txt"), "least": 9, "count": 3}
    found = answers.Field.resolved(options, None)
    assert (found["answers"], found["count"], found["file"]) == (("red", "blue"), 2, "")


def test_a_list_of_ones_own_is_told_by_its_file(cli, trained, tmp_path):
    make_files(tmp_path)
    flag = f"--config.data.fields.answers.file={tmp_path / 'list.txt'}"
    process = cli(*flags_of("vqa", tmp_path, trained), flag, f"--workdir={tmp_path / 'run'}")
    assert process.returncode == 2 and "list.txt: the list of answers cannot be read" in process.stderr
    assert not (tmp_path / "run" / "config.json").exists()
