"""Every command of docs/tasks.md has flags that are there, with values of their types."""

import re
import shlex

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "tasks.md").read_text()
WRONG_FLAG = (
    r"no config key|Could not parse|has no structure|--config has no|Unknown command line flag|unknown argument"
)


def commands() -> list[str]:
    """The command lines of the page that start from a checkpoint, each as one line."""
    found = re.findall(r"^ {4}.*python -m maskvlm_jax\.main (.*)$", PAGE.replace("\\\n", " "), flags=re.M)
    found += [f"--config=configs/finetune.py:{line}" for line in re.findall(r"^ {4}\.\.\. (.*)$", PAGE, flags=re.M)]
    return [" ".join(line.split()) for line in found]


def refused_for_a_flag(process) -> bool:
    """Whether a command that must end because there is no checkpoint ended for what it was given."""
    assert process.returncode == 2, process.stderr
    return bool(re.search(WRONG_FLAG, process.stderr))


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_page_ends_for_want_of_a_checkpoint_alone(cli, line):
    line = re.sub(r"--config\.checkpoint=\S+", "", line.replace("task=NAME", "task=vqa").replace("count=N", "count=7"))
    process = cli(*shlex.split(line), "--config.checkpoint=no_such_run", "--workdir=no_such_folder")
    assert not refused_for_a_flag(process), process.stderr


@pytest.mark.parametrize(
    ("task", "flag"),
    [
        ("compositional,data=files", "--config.evals.compositional.left_out=('near','next to')"),
        ("zero_shot,data=files", "--config.data.splits.val=val.csv"),
        ("linear_probe,data=files", "--config.evals.linear_probe_label.features=first"),
        ("vqa", "--config.data.fields.answers.file=list.txt"),
    ],
)
def test_a_flag_that_the_page_names_in_a_sentence_is_there(cli, task, flag):
    assert f"`{flag.split('=')[0]}" in PAGE
    flags = f"--config=configs/finetune.py:task={task}", flag, "--config.checkpoint=no_such_run", "--workdir=none"
    assert not refused_for_a_flag(cli(*flags))


@pytest.mark.parametrize(
    ("task", "flag"),
    [
        ("vqa_text", "--config.objectives.answers.candidates=0"),
        ("vqa_text", "--config.data.fields.answer_text.most=0"),
        ("vqa_text", "--config.data.fields.answer_text.length=1"),
        ("vqa", "--config.data.fields.answers.least=-1"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(cli, task, flag):
    process = cli(f"--config=configs/finetune.py:task={task}", flag, "--config.checkpoint=x", "--workdir=none")
    assert process.returncode == 2 and flag.removeprefix("--config.").split("=")[0] in process.stderr
