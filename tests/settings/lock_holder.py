"""Holds the lock of a workdir until it is killed: `python -m tests.settings.lock_holder WORKDIR`."""

import sys
import time
from pathlib import Path

from maskvlm_jax.settings import workdir as workdirs

with workdirs.locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
