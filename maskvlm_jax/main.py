"""Flags -> config -> pretrain | evaluate.

    python -m maskvlm_jax.main --config=configs/pretrain.py
    python -m maskvlm_jax.main --config=configs/pretrain.py:size=small,data=flickr8k --config.data.root=FOLDER
    python -m maskvlm_jax.main --config=configs/evaluate.py --config.checkpoint=WORKDIR
"""

import importlib
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from maskvlm_jax import host
from maskvlm_jax.errors import Stopped, UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE[:structure], see configs/", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", "", "folder of the run; runs/NAME by default", short_name="w")

TASKS = {"pretrain": "maskvlm_jax.train", "evaluate": "maskvlm_jax.evaluate"}


def parse(argv: list[str]):
    """Reads the command line: (config, workdir).

    Raises:
        UserError: an unknown flag, key, value or type; the message names the nearest.
    """
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, ImportError) as error:
        raise UserError(str(error.args[0] if error.args else error).strip().replace("\n", " ")) from error
    if len(rest) > 1:
        raise UserError(f"unknown argument {rest[1]!r}; flags start with --")
    config = _CONFIG.value
    if config is None:
        raise UserError("no config; give --config=configs/pretrain.py")
    if config.get("task") not in TASKS:
        raise UserError(f"config.task is {config.get('task')!r}; choose among {', '.join(TASKS)}")
    return config, Path(_WORKDIR.value or default_workdir(config))


def default_workdir(config) -> str:
    if config.task == "evaluate":
        return f"{config.checkpoint}/evaluation"
    return f"runs/{config.name}"


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit status."""
    host.keep_freed_memory()
    host.quiet_libraries()
    try:
        config, workdir = parse(sys.argv if argv is None else argv)
        importlib.import_module(TASKS[config.task]).run(config, workdir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except Stopped as stopped:
        print(stopped, flush=True)
        return stopped.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
