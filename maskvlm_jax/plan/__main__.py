"""What a run would need of a TPU slice that one does not have: its real step, compiled for it on a CPU.

    python -m maskvlm_jax.plan --config=configs/pretrain.py:size=base,data=coco --slice=v5e-16

libtpu's compiler does it, without a TPU: pip install "jax[tpu]" with the JAX version of requirements.txt. A compilation
takes minutes. Where the run does not fit, rematerialisation, then microbatches are tried until one fits.

Memory, bytes and collectives are those of the compiled program. FLOPs are those of the traced step, split evenly. Times
are bounds by the chip's peaks; a real step takes longer.
"""

import sys

import jax
from absl import flags

from maskvlm_jax.plan import planner, slices
from maskvlm_jax.runtime import buckets, host
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import command_line

_SLICE = flags.DEFINE_string("slice", "", "TPU slice: v5e-256, v4-32, ..., several as 2xv5e-256")
_PRICE = flags.DEFINE_float("price", 0.0, "dollars a chip-hour; 0 = the price of the table in plan/slices.py")
_JSON = flags.DEFINE_bool("json", False, "print one JSON object")
_PROGRAM = flags.DEFINE_string("program", "", "file that the compiled program's text is written to")
_TRY = flags.DEFINE_bool("try", True, "where the run does not fit, try what may")


def main() -> int:
    """Runs a command line; returns the exit status."""
    host.quiet_libraries()
    jax.config.update("jax_platforms", "cpu")

    def work() -> None:
        config, _ = command_line.parse(sys.argv, tasks=("pretrain", "finetune"))
        if not _SLICE.value:
            raise UserError("no slice; give --slice=v5e-256")
        where = slices.parse(_SLICE.value)
        price = _PRICE.value or where.chip.price
        keep = buckets.local_folder(_PROGRAM.value, "the program") if _PROGRAM.value else None
        planner.run(config, where, attempts=_TRY.value, price=price, as_json=_JSON.value, keep=keep)

    return command_line.run(work)


if __name__ == "__main__":
    command_line.leave(main())
