"""Memory of the process, in one of its own: settings of the allocator stay for its life."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

LEFT = """
import ctypes
from maskvlm_jax import host

host.keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 // 2**20

def step(mib):
    block = libc.malloc(mib * 2**20)
    ctypes.memset(block, 1, mib * 2**20)
    libc.malloc(2**20)  # what a step leaves behind it
    libc.free(block)

step(700)
kept = held()
host.settle_memory()
print(kept, held())
for mib in (701, 702, 703):  # none fits into the hole of the one before
    step(mib)
print(held())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
def test_settling_gives_back_what_is_free_and_later_steps_share_one_block():
    process = subprocess.run([sys.executable, "-c", LEFT], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
    kept, settled, later = map(int, process.stdout.split())
    assert kept > 700 and settled < 300
    assert later < 1_000  # not three blocks
