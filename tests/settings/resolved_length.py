"""Prints the steps, epochs and warm-up of a command line, for a set of 100,000 pictures."""

import sys

from maskvlm_jax.settings import command_line, rules, run_length

config, _ = command_line.parse(sys.argv, tasks=("pretrain",))
rules.check(config)
run_length.resolve_steps(config, 100_000)
print(config.steps, config.epochs, config.optim.warmup_steps)
