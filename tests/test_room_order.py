"""Rooms import those below them only, in the order of docs/architecture.md, and no modules import in a circle."""

import ast
import graphlib
import re

from tests.conftest import ROOT

PACKAGE = ROOT / "maskvlm_jax"


def imports() -> dict[str, set[str]]:
    """module -> modules of the package that it imports, anywhere in its code."""
    paths = PACKAGE.rglob("*.py")
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    found = {}
    for name, path in names.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: a relative import"
                told = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                told = [alias.name for alias in node.names]
            else:
                continue
            for one in told:
                # A function or class is of the module before the last dot.
                module = one if one in names else one.rpartition(".")[0]
                if module.partition(".")[0] == PACKAGE.name:
                    assert module in names, f"{name}: {one}"
                    found[name].add(module)
    return found


def room(module: str) -> str:
    """The room of the table that a module belongs to; "commands" of files beside the rooms and of their commands."""
    parts = module.split(".")[1:]
    if not parts or parts[-1] == "__main__" or not (PACKAGE / parts[0]).is_dir():
        return "commands"
    return "models/pretrained" if parts[:2] == ["models", "pretrained"] else parts[0]


def test_rooms_import_those_below_them_only():
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page[page.index("## Rooms") : page.index("## Contracts")]
    order = [name.rstrip("/") for name in re.findall(r"^\| `?([\w/]+)`? \| ", table, flags=re.M)]
    upwards = [
        f"{module} imports {other}"
        for module, others in imports().items()
        for other in others
        if order.index(room(other)) < order.index(room(module))
    ]
    assert not upwards


def test_no_modules_import_in_a_circle():
    graphlib.TopologicalSorter(imports()).prepare()
