"""Recipes: which parts, masks and losses make a method; one file each, no code of its own.

A file has a function `recipe(config, setting)`, which changes a config whose sizes are set. `setting` says whether the
run is short and on photographs, see `parts`. If a paper does not give a value, docs/architecture.md says which was
taken and from where. Nothing is imported from jax here.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs.recipes.parts import Setting
from maskvlm_jax.runtime import plugins

DEFAULT = "maskvlm"
RECIPES = (DEFAULT, *(name for name in plugins.names("configs.recipes", "recipe") if name != DEFAULT))


def apply(name: str, config: ConfigDict, setting: Setting) -> None:
    """Makes a config one of a recipe, in this folder or a .py file.

    Raises:
        UserError: there is no such recipe.
    """
    plugins.load("configs.recipes", name, "recipe", "recipe")(config, setting)


def short_name(name: str) -> str:
    """The name of a recipe that may be the path of a file."""
    return Path(name).stem if name.endswith(".py") else name
