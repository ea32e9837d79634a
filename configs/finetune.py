"""Fine-tuning for a downstream task, on the model of a pre-training run.

    python -m maskvlm_jax.main --config=configs/finetune.py:task=classification \\
        --config.checkpoint=runs/maskvlm-tiny-scenes

A task is a file of maskvlm_jax/training/tasks, or the path of any other: task=mine.py. The rest of the structure after
the colon (recipe, size, data) is that of the pre-training run.
"""

from ml_collections import ConfigDict

from configs import common, pretrain, recipes
from maskvlm_jax.runtime import plugins

TASKS = "maskvlm_jax.training.tasks"


def get_config(arg: str = "") -> ConfigDict:
    """The config of a fine-tuning run; `arg` is the text after the colon."""
    of_task = [item for item in arg.split(",") if item.startswith("task=")]
    others = [item for item in arg.split(",") if item not in of_task]
    name = common.parse_arg(",".join(of_task), file="task", task=tuple(plugins.names(TASKS, "task")))["task"]
    config = pretrain.get_config(",".join(others))
    config.task = "finetune"
    config.name += f"-{recipes.short_name(name)}"
    config.objectives, config.evals = ConfigDict(), ConfigDict()
    config.optim.ema_decay = 0.0
    # A third of the rates of pre-training, a quarter of its length.
    config.steps, config.epochs = config.steps // 4, config.epochs / 4
    config.optim.lr, config.optim.encoder_lr = config.optim.lr / 3, config.optim.encoder_lr / 3
    here = name if name.endswith(".py") else f"{TASKS}.{name}"
    plugins.load(TASKS, name, "task", "task")(config, here)
    return config
