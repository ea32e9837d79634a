"""Writes the model of a run into a folder that others read: safetensors, transformers, PyTorch, StableHLO.

    python -m maskvlm_jax.export WORKDIR OUT
    python -m maskvlm_jax.export WORKDIR OUT --step=best --weights=ema --stablehlo

OUT must not exist. It is itself a start for training and for evaluation, --config.checkpoint=OUT.
"""

import sys

import jax
from absl import flags

from maskvlm_jax.runtime import host
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.serving.exports import exporting
from maskvlm_jax.settings import command_line
from maskvlm_jax.training import stored_model

_STEP = flags.DEFINE_string("step", "latest", "latest, best or a number")
_WEIGHTS = flags.DEFINE_enum("weights", "params", stored_model.WEIGHTS, "the parameters or their moving average")
_STABLEHLO = flags.DEFINE_bool("stablehlo", False, "write programs for serving too")


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit status."""
    host.quiet_libraries()
    host.print_any_text()
    jax.config.update("jax_platforms", "cpu")

    def work() -> None:
        rest = command_line.positional(sys.argv if argv is None else argv)
        if len(rest) != 2:
            raise UserError("give two folders: python -m maskvlm_jax.export WORKDIR OUT")
        exporting.export(*rest, step=_STEP.value, weights=_WEIGHTS.value, stablehlo=_STABLEHLO.value)

    return command_line.run(work)


if __name__ == "__main__":
    command_line.leave(main())
