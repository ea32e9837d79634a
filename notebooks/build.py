"""Writes the notebooks, NAME.ipynb of NAME.py each, without outputs.

    python notebooks/build.py

The source of a notebook is a script whose cells begin with `# %%`, as jupytext and editors read it. Edit that, never
the notebook.
"""

from pathlib import Path

import jupytext
import nbformat

FOLDER = Path(__file__).parent
# What Colab and Jupyter open it with.
METADATA = {
    "accelerator": "GPU",
    "colab": {"provenance": []},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def sources() -> list[Path]:
    """The scripts, in alphabetical order."""
    return sorted(path for path in FOLDER.glob("*.py") if path.name != Path(__file__).name)


def notebook(source: Path) -> str:
    """The notebook of a script, the same text every time."""
    made = jupytext.read(source, fmt="py:percent")
    made.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(made.cells):
        cell.id = f"cell-{number}"
    made.nbformat, made.nbformat_minor = 4, 5
    nbformat.validate(made)
    return nbformat.writes(made) + "\n"


if __name__ == "__main__":
    for path in sources():
        path.with_suffix(".ipynb").write_text(notebook(path), encoding="utf-8")
