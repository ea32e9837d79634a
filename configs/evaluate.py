"""Scores a checkpoint: retrieval before and after re-ranking, cross-modal probes, figures.

    python -m maskvlm_jax.main --config=configs/evaluate.py --config.checkpoint=WORKDIR
    python -m maskvlm_jax.main --config=configs/evaluate.py:data=flickr8k --config.checkpoint=WORKDIR \\
        --config.data.root=FOLDER

Values that are not set are those of the run. With data=NAME after the colon they are that set's; evals=calibration
scores matching's probabilities too.
"""

from ml_collections import ConfigDict, config_dict

from configs import common, data_sets


def get_config(arg: str = "") -> ConfigDict:
    """The config of an evaluation; `arg` is the text after the colon."""
    chosen = common.parse_arg(arg, data=("run", *data_sets.DATA), evals=("run", "calibration"))
    name, more = chosen["data"], chosen["evals"]
    config = ConfigDict()
    config.task = "evaluate"
    config.name = "evaluation"  # of the folder in the workdir where results go
    config.checkpoint = ""  # a workdir
    config.checkpoint_step = "latest"  # latest | best | a number
    config.data = data_sets.data_block("scenes" if name == "run" else name)
    config.evaluation = common.evaluation_block("scenes" if name == "run" else name)
    config.evals_of_run = True  # the run's own evaluators score
    config.evals = ConfigDict()  # more of them, a line each
    if more != "run":
        config.evals[more] = {"name": more, "during": False}
    if name == "run":
        for block in (config.data, config.evaluation):
            _unset(block)
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "model": 1})
    return config


def _unset(block: ConfigDict) -> None:
    """Makes every value a placeholder of its type: the run's own value stands unless a flag gives another."""
    for key, value in list(block.items()):
        if isinstance(value, ConfigDict):
            _unset(value)
        else:
            block[key] = config_dict.placeholder(type(value))
