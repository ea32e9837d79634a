"""What a linear layer on frozen features tells of classes: the model is not trained, see `evaluators.linear_probe`.

Of generated scenes with one object its shape and its colour are told, by a layer each.
"""

from ml_collections import ConfigDict

from maskvlm_jax.data.scenes.world import COLOURS, SHAPES
from maskvlm_jax.training.tasks.classification import read_folders

TRAINS = False


def task(config: ConfigDict, here: str) -> None:
    read_folders(config)
    labels, limit = {"label": ()}, 10_000
    if config.data.source == "scenes":
        config.data.source = "maskvlm_jax.data.scenes.singles"
        labels, limit = {"shape": SHAPES, "colour": COLOURS}, 4_000
    for label, classes in labels.items():
        one = {"name": "label", "key": label, "classes": classes, "count": len(classes)}
        config.data.fields[label] = ConfigDict(one)
        line = {"name": "linear_probe", "during": False, "label": label, "features": "mean"}
        config.evals[f"linear_probe_{label}"] = ConfigDict(line | {"train_limit": limit, "steps": 1_000})
