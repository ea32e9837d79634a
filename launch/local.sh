#!/usr/bin/env bash
# One host, all its devices. Arguments go to the command:
#   launch/local.sh --config=configs/pretrain.py:size=mini,data=flickr8k --config.data.root=FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."

# The README's environment, where there is one and PYTHON asks for no other.
if [[ -z ${PYTHON:-} && -x .venv/bin/python ]]; then PYTHON=.venv/bin/python; fi

# Compiled programs are kept, so that a restarted run begins within seconds.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/runs/compiled}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-1}

exec "${PYTHON:-python}" -m maskvlm_jax.main "$@"
