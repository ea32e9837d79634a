"""The notebooks are what their scripts say, and run from the first cell to the last."""

import re
import tomllib

import nbclient
import nbformat
import pytest

from notebooks import build
from tests.conftest import ROOT, TOY, toy_flags

SOURCES = build.sources()
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
MODEL = {name: value for name, value in TOY.items() if name.startswith("model.")}
SMALL = {"steps": 4, "eval_every": 4, "checkpoint_every": 4, "batch_size": 8, "optim.warmup_steps": 2, **MODEL}
TUNED = " ".join(f"--config.{name}={value}" for name, value in SMALL.items()) + " --config.evaluation.batch_size=8"


def parameters_of(name: str, folder) -> dict:
    """What makes a notebook small: values of its cell of parameters."""
    trained = " ".join(toy_flags(steps=4, eval_every=4, checkpoint_every=4, evaluation__extra_splits="()"))
    return {
        "zero_shot_retrieval": {"FLAGS": trained, "COUNT": 12, "RERANK": 4, "WORK": str(folder)},
        "fine_tune": {"FLAGS": trained, "TUNE_FLAGS": TUNED, "TUNE_STEPS": 4, "SCENES": 20, "WORK": str(folder)},
    }[name]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_is_what_its_script_says_and_has_no_outputs(source):
    made = build.notebook(source)
    told = "; write it anew: python notebooks/build.py"
    assert made == source.with_suffix(".ipynb").read_text(encoding="utf-8"), f"{source.name} was changed{told}"
    assert not any(cell.get("outputs") for cell in nbformat.reads(made, as_version=4).cells)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_names_the_repository_and_nothing_else_in_the_net(source):
    badge = "https://colab.research.google.com"
    own = f"{REPOSITORY.replace('https://github.com', badge + '/github')}/blob/main/notebooks/{source.stem}.ipynb"
    found = set(re.findall(r"https?://[^\s)\"'\]]+", source.read_text(encoding="utf-8")))
    assert found == {REPOSITORY, own, f"{badge}/assets/colab-badge.svg"}
    assert own in (ROOT / "README.md").read_text(encoding="utf-8")


SLOW = ("fine_tune",)  # trains, tunes and searches


@pytest.mark.parametrize(
    "source",
    [pytest.param(path, id=path.stem, marks=pytest.mark.slow if path.stem in SLOW else ()) for path in SOURCES],
)
def test_a_notebook_runs_and_what_it_asserts_holds(source, cli_environment, monkeypatch, tmp_path):
    for name, value in cli_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.reads(build.notebook(source), as_version=4)
    cells = notebook.cells
    place = next(i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", ()))
    values = parameters_of(source.stem, tmp_path / "work")
    lines = [f"{name} = {value!r}" for name, value in values.items()]
    assert all(re.search(rf"^{name} = ", cells[place].source, flags=re.M) for name in values)
    cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    # In its own folder, as Jupyter runs it.
    where, times = {"metadata": {"path": str(source.parent)}}, {"timeout": 3000, "startup_timeout": 600}
    nbclient.NotebookClient(notebook, kernel_name="python3", resources=where, **times).execute()
    shown = [output for cell in cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", ()) for output in shown)
