#!/usr/bin/env bash
# All that a new accelerator has to show: speed beside PyTorch, numbers, reproducibility. No part is begun after eight
# minutes (--seconds).
#
#   benchmarks/accelerator.sh OUT                     # goes on where OUT/results.jsonl ends
#   benchmarks/accelerator.sh OUT --photographs DATA  # DATA: a prepared set, see configs/prepare.py
#   benchmarks/accelerator.sh OUT --dry               # every part at toy size, on a CPU too
#
# PYTHON is the interpreter (python3). benchmarks/accelerator.py says what the parts are and turns OUT into tables.
set -euo pipefail
cd "$(dirname "$0")/.."
# Several processes share the card, so that none takes all of its memory at the start.
export XLA_PYTHON_CLIENT_PREALLOCATE=${XLA_PYTHON_CLIENT_PREALLOCATE:-false}
# What was compiled once is kept: a part that is run again begins within seconds.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-${TMPDIR:-/tmp}/maskvlm-compiled}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
exec "${PYTHON:-python3}" benchmarks/accelerator.py "$@"
