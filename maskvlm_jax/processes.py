"""Several processes as one run: joining them, who writes, and values that all must agree on.

Every function here but `join` and `is_main` is collective: all processes must call it, in the same order.
"""

import contextlib
import json
import os
import socket
import sys
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from maskvlm_jax.errors import Absent, UserError


def join(coordinator: str, *, processes: int, process: int, timeout: int) -> None:
    """Joins the processes of a run, before anything else is asked of jax; alone where `coordinator` is "".

    Process 0 prints; of the others only errors are seen.

    Args:
        coordinator: "auto" lets jax find the cluster that it is on (Cloud TPU, Slurm, GKE); HOST:PORT is that of
            process 0.
        processes, process: how many there are and which this is; -1 with "auto".
        timeout: seconds that all must arrive in.

    Raises:
        Absent: some did not; the message names them.
    """
    if not coordinator:
        return
    if coordinator != "auto" and not 0 <= process < processes:
        raise UserError(f"--coordinator={coordinator} needs --processes=N and --process=I, 0 <= I < N")
    place = _find_cluster(timeout) if coordinator == "auto" else (coordinator, processes, process)
    if place is not None:
        _meet(*place, timeout=timeout)
    given = {} if coordinator == "auto" else {"coordinator_address": coordinator}
    given |= {} if coordinator == "auto" else {"num_processes": processes, "process_id": process}
    try:
        jax.distributed.initialize(**given, initialization_timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes did not join at {coordinator}: {str(error).splitlines()[0]}") from error
    if not is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _find_cluster(timeout: int) -> tuple[str, int, int] | None:
    """(address of process 0, processes, process) of the cluster that jax finds; None where jax has no way to tell."""
    try:
        from jax._src.clusters import ClusterEnv  # there is no public way to ask

        detect = ClusterEnv.auto_detect_unset_distributed_params
    except (ImportError, AttributeError):
        return None
    address, processes, process, *_ = detect(None, None, None, None, None, timeout)
    if address is None:
        raise UserError("--coordinator=auto finds no cluster here; give HOST:PORT with --processes and --process")
    return address, processes, process


def _meet(address: str, processes: int, process: int, *, timeout: int) -> None:
    """Waits until all processes are there, on the port that jax uses next.

    jax itself ends a process with a stack trace where others do not come.

    Raises:
        Absent: naming those that did not come.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout
    if process:
        _report_to(host.strip("[]"), int(port), process, deadline, timeout)
        return
    here: dict[int, socket.socket] = {}
    with socket.create_server(("", int(port)), backlog=processes) as server:
        while len(here) < processes - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError, ValueError):
                connection, _ = server.accept()
                connection.settimeout(5)
                here[int(connection.recv(16))] = connection
    missing = sorted(set(range(1, processes)) - here.keys())
    for connection in here.values():
        with contextlib.suppress(OSError), connection:
            connection.sendall(json.dumps(missing).encode())
            connection.recv(1)  # until the other end has closed: a port that closes first stays taken for a while
    if missing:
        raise _missing(missing, timeout)


def _report_to(host: str, port: int, process: int, deadline: float, timeout: int) -> None:
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.sendall(str(process).encode())
                connection.settimeout(max(1.0, deadline - time.monotonic()) + 10)
                missing = json.loads(connection.recv(1 << 20))
        except (OSError, ValueError):
            time.sleep(0.2)
            continue
        if missing:
            raise _missing(missing, timeout)
        return
    raise _missing([0], timeout, f" at {host}:{port}")


def _missing(numbers: list[int], timeout: int, where: str = "") -> Absent:
    names = ", ".join(map(str, numbers))
    return Absent(
        f"process {names}{where} did not join within {timeout} s; look at its host, or raise --connect_timeout"
    )


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
