"""A process that only watches its peers: `python -m tests.runtime.watcher ADDRESS NUMBER`, of three.

It says "up", then reads a line: "finish", or the words it fails with, or nothing.
"""

import sys
import time

from maskvlm_jax.runtime import processes

processes._peers = processes._meet(sys.argv[1], 3, int(sys.argv[2]), timeout=60)
print("up", flush=True)
word = sys.stdin.readline().strip()
if word == "finish":
    processes.finish()
elif word:
    processes.fail(2, word)
time.sleep(60)
