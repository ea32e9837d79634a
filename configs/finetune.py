"""Fine-tuning for a downstream task, on the model of a pre-training run.

    python -m maskvlm_jax.main --config=configs/finetune.py:task=classification \\
        --config.checkpoint=runs/maskvlm-tiny-scenes

A task is a file of maskvlm_jax/training/tasks, or the path of any other: task=mine.py. The rest of the structure after
the colon (recipe, size, data) is that of the pre-training run. A task that trains nothing scores the checkpoint at
once, into a folder of its workdir that has the task's name; the checkpoint says what its recipe and size are.
"""

import sys

from ml_collections import ConfigDict

from configs import common, data_sets, evaluate, pretrain, recipes
from maskvlm_jax.runtime import plugins

TASKS = "maskvlm_jax.training.tasks"


def get_config(arg: str = "") -> ConfigDict:
    """The config of a fine-tuning run, or of an evaluation if the task trains nothing; `arg` is the text after the
    colon."""
    of_task = [item for item in arg.split(",") if item.startswith("task=")]
    others = [item for item in arg.split(",") if item not in of_task]
    name = common.parse_arg(",".join(of_task), file="task", task=tuple(plugins.names(TASKS, "task")))["task"]
    task = plugins.load(TASKS, name, "task", "task")
    trains = getattr(sys.modules[task.__module__], "TRAINS", True)
    config = (_tuning if trains else _scoring)(",".join(others), recipes.short_name(name))
    task(config, name if name.endswith(".py") else f"{TASKS}.{name}")
    return config


def _tuning(arg: str, name: str) -> ConfigDict:
    config = pretrain.get_config(arg)
    config.task = "finetune"
    config.name += f"-{name}"
    config.objectives, config.evals = ConfigDict(), ConfigDict()
    # Masks are the host's, and the task says what else is read.
    config.optim.ema_decay, config.masking.masker, config.data.fields = 0.0, ConfigDict(), ConfigDict()
    # A third of the rates of pre-training, a quarter of its length.
    config.steps, config.epochs = config.steps // 4, config.epochs / 4
    config.optim.lr, config.optim.encoder_lr = config.optim.lr / 3, config.optim.encoder_lr / 3
    return config


def _scoring(arg: str, name: str) -> ConfigDict:
    data = common.parse_arg(arg, data=data_sets.DATA)["data"]
    config = evaluate.get_config(f"data={data}")
    config.name, config.evals_of_run = name, False
    return config
