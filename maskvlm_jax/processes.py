"""Several processes as one run: joining them, who writes, and values that all must agree on.

Every function here but `join` and `is_main` is collective: all processes must call it, in the same order.
"""

import json
import os
import re
import sys
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from maskvlm_jax.errors import UserError


def join(coordinator: str, *, processes: int, process: int, timeout: int) -> None:
    """Joins the processes of a run, before anything else is asked of jax; alone where `coordinator` is "".

    Process 0 prints; of the others only errors are seen.

    Args:
        coordinator: "auto" lets jax find the cluster that it is on (Cloud TPU, Slurm, GKE); HOST:PORT is that of
            process 0.
        processes, process: how many there are and which this is; -1 with "auto".
        timeout: seconds that all must arrive in.

    Raises:
        UserError: some did not; the message names them where this is process 0.
    """
    if not coordinator:
        return
    if coordinator != "auto" and not 0 <= process < processes:
        raise UserError(f"--coordinator={coordinator} needs --processes=N and --process=I, 0 <= I < N")
    given = {} if coordinator == "auto" else {"coordinator_address": coordinator}
    given |= {"num_processes": processes, "process_id": process} if processes > 0 else {}
    try:
        jax.distributed.initialize(**given, initialization_timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise UserError(_not_joined(str(error), coordinator, timeout)) from error
    if not is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _not_joined(told: str, coordinator: str, timeout: int) -> str:
    missing = sorted({int(number) for number in re.findall(r"task:(\d+)", told.partition("timed out task names")[2])})
    if missing:
        names = ", ".join(map(str, missing))
        return f"process {names} did not join within {timeout} s; look at its host, or raise --connect_timeout"
    return f"the processes of the run did not come together at {coordinator} within {timeout} s: {told.splitlines()[0]}"


def is_main() -> bool:
    """True in the process that writes what only one may write."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def fetch(tree: Any) -> Any:
    """Global device arrays as NumPy arrays, whole in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree, tiled=True))


def gather(value: Any) -> list[Any]:
    """A JSON value of every process, by process."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array(len(data), np.int32)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
