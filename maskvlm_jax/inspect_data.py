"""Looks at what a run would train on, before there is a run: what is broken, what is cut, what the model sees.

    python -m maskvlm_jax.inspect_data --config=configs/pretrain.py:data=flickr8k --config.data.root=FOLDER

Takes the config and flags of the run; writes report.json and contact_sheet.png to inspect/NAME, or to --workdir. Of
large sets it looks at 2,000 examples, evenly spaced; --examples=0 looks at all.
"""

import sys

from absl import flags

from maskvlm_jax.prepare import inspection
from maskvlm_jax.runtime import buckets, host
from maskvlm_jax.settings import command_line
from maskvlm_jax.training import initial_state

_EXAMPLES = flags.DEFINE_integer(
    "examples", 2_000, "examples that are looked at, evenly spaced; 0 = all", lower_bound=0
)


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit status."""
    host.quiet_libraries()
    host.print_any_text()

    def work() -> None:
        config, _ = command_line.parse(sys.argv if argv is None else argv, tasks=("pretrain", "finetune"))
        initial_state.check(config)
        folder = buckets.local_folder(flags.FLAGS.workdir or f"inspect/{config.name}", "the report")
        print(inspection.text(inspection.inspect(config, folder, examples=_EXAMPLES.value)))
        print(f"{folder / 'contact_sheet.png'} shows what the model sees, {folder / 'report.json'} has all of this")

    return command_line.run(work)


if __name__ == "__main__":
    command_line.leave(main())
