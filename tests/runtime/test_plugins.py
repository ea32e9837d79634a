"""Parts are found by name and by path, and what is no part is told."""

import sys

import pytest

from maskvlm_jax.runtime import plugins
from maskvlm_jax.runtime.errors import UserError

OBJECTIVE = ("maskvlm_jax.objectives", "Objective", "objective")


def load(name):
    package, attribute, what = OBJECTIVE
    return plugins.load(package, name, attribute, what)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def test_a_part_of_the_package_is_found_by_name():
    from maskvlm_jax.objectives import matching

    assert load("matching") is matching.Objective


def test_a_part_elsewhere_is_found_by_path(folder):
    (folder / "mine_by_path.py").write_text("class Objective:\n    pass\n")
    assert load(str(folder / "mine_by_path.py")).__module__ == "mine_by_path"


@pytest.mark.parametrize("name", ["mim", "reduce", "base", "", "../matching", "a b"])
def test_what_is_no_part_is_refused_with_those_there_are(name):
    with pytest.raises(
        UserError, match=r"there is no objective .*; choose among .*contrastive, .*matching.*, or a \.py file"
    ):
        load(name)


def test_files_that_are_no_part_are_told(folder):
    (folder / "empty_part.py").write_text("")
    (folder / "json.py").write_text("class Objective:\n    pass\n")
    for name, told in (
        ("empty_part.py", "is no objective: it has no Objective"),
        ("absent.py", "there is no file .*absent.py for the objective"),
        ("json.py", "another module is named json; rename the file"),
    ):
        with pytest.raises(UserError, match=told):
            load(str(folder / name))


def test_a_missing_import_inside_a_part_is_not_taken_for_a_missing_part(folder):
    (folder / "needs_nothing_there.py").write_text("import nothing_there\n\n\nclass Objective:\n    pass\n")
    with pytest.raises(ModuleNotFoundError, match="nothing_there"):
        load(str(folder / "needs_nothing_there.py"))
