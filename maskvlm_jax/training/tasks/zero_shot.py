"""Classes of pictures by their names alone: nothing is trained, see `evaluators.zero_shot`.

Of generated scenes with one object the class is its colour and shape, "red star": 64 of them.
"""

import itertools

from ml_collections import ConfigDict

from maskvlm_jax.data.scenes.world import COLOURS, SHAPES
from maskvlm_jax.training.tasks.classification import read_folders

TRAINS = False


def task(config: ConfigDict, here: str) -> None:
    read_folders(config)
    label = {"name": "label", "key": "label", "classes": (), "count": 0}
    if config.data.source == "scenes":
        config.data.source = "maskvlm_jax.data.scenes.singles"
        names = tuple(f"{colour} {shape}" for colour, shape in itertools.product(COLOURS, SHAPES))
        label |= {"key": "name", "classes": names, "count": len(names)}
    config.data.fields.label = ConfigDict(label)
    templates = "scenes" if "scenes" in config.data.source else "photographs"
    zero_shot = {"name": "zero_shot", "during": False, "label": "label", "names": "", "templates": templates}
    config.evals = ConfigDict({"zero_shot": zero_shot})
