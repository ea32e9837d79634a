"""Compiles for as many seconds as it is told, waits for its turn and prints when it began and ended."""

import json
import sys
import time

from benchmarks.command import wait_for_turn

time.sleep(float(sys.argv[1]))
wait_for_turn()
began = time.time()
time.sleep(0.5)
print(json.dumps([began, time.time()]))
