"""Does what a config file says, with the values that flags give: pretrain, finetune, evaluate, ablate or prepare.

python -m maskvlm_jax.main --config=configs/pretrain.py
python -m maskvlm_jax.main --config=configs/pretrain.py:size=small,data=flickr8k --config.data.root=FOLDER
python -m maskvlm_jax.main --config=configs/evaluate.py --config.checkpoint=WORKDIR
"""

from maskvlm_jax.runtime import host

if __name__ == "__main__":
    host.use_huge_pages()  # before the slow imports, which it would repeat

import importlib
import sys

from maskvlm_jax.settings import command_line

# What each `config.task` runs: `run(config, workdir)` of a module, imported once it is known which.
TASKS = {
    "pretrain": "maskvlm_jax.training.loop",
    "finetune": "maskvlm_jax.training.loop",
    "evaluate": "maskvlm_jax.training.scoring",
    "ablate": "maskvlm_jax.ablate.ablation",
    "prepare": "maskvlm_jax.prepare.preparation",
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit status."""
    host.quiet_libraries()
    host.print_any_text()

    def work() -> None:
        config, workdir = command_line.parse(sys.argv if argv is None else argv, tasks=tuple(TASKS))
        host.prepare_accelerator(deterministic=config.get("deterministic", False))
        command_line.join()
        importlib.import_module(TASKS[config.task]).run(config, workdir)

    return command_line.run(work, resumes=True)


if __name__ == "__main__":
    command_line.leave(main())
