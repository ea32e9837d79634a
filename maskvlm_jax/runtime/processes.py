"""Several processes as one run: joining them, who writes, and values that all must agree on.

`barrier`, `fetch`, `gather` and `finish` are collective: all processes must call them, in the same order.
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

from maskvlm_jax.runtime import host
from maskvlm_jax.runtime.errors import Absent, UserError
from maskvlm_jax.runtime.peers import Peers

_peers: Peers | None = None  # of this process, once it has joined


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
    global _peers
    place = _find_cluster(timeout) if coordinator == "auto" else (coordinator, processes, process)
    if place is not None:
        _peers = _meet(*place, timeout=timeout)
    with contextlib.suppress(AttributeError):
        # JAX's own notice of preemption takes SIGTERM away from us and complains when a process is lost.
        jax.config.update("jax_enable_preemption_service", False)
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


def _meet(address: str, processes: int, process: int, *, timeout: int) -> Peers:
    """Waits until all processes are there, on the port that jax uses next, and connects them on another.

    jax itself ends a process with a stack trace where others do not come.

    Raises:
        Absent: naming those that did not come.
    """
    name, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout
    if process:
        name = name.strip("[]")
        return _connect(name, _report_to(name, int(port), process, deadline, timeout), process)
    here: dict[int, socket.socket] = {}
    with socket.create_server(("", int(port)), backlog=processes) as server:
        while len(here) < processes - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError, ValueError):
                connection, _ = server.accept()
                connection.settimeout(5)
                here[int(connection.recv(16))] = connection
    missing = sorted(set(range(1, processes)) - here.keys())
    with socket.create_server(("", 0), backlog=processes) as watched:
        for connection in here.values():
            with contextlib.suppress(OSError), connection:
                connection.sendall(json.dumps({"missing": missing, "port": watched.getsockname()[1]}).encode())
                connection.recv(1)  # until the other end has closed: a port that closes first stays taken for a while
        if missing:
            raise _missing(missing, timeout)
        return _accept(watched, processes)


def _report_to(name: str, port: int, process: int, deadline: float, timeout: int) -> int:
    """Tells process 0 that this one is there; returns the port that it watches."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((name, port), timeout=left) as connection:
                connection.sendall(str(process).encode())
                connection.settimeout(max(1.0, deadline - time.monotonic()) + 10)
                reply = json.loads(connection.recv(1 << 20))
        except (OSError, ValueError):
            time.sleep(0.2)
            continue
        if reply["missing"]:
            raise _missing(reply["missing"], timeout)
        return reply["port"]
    raise _missing([0], timeout, f" at {name}:{port}")


_NEWS = 5  # seconds that word of another process's end may take
_CONNECT = 20  # seconds for the connections that are watched; all processes are there by then


def _connect(name: str, port: int, process: int) -> Peers:
    try:
        connection = socket.create_connection((name, port), timeout=_CONNECT)
        connection.sendall(json.dumps([process, socket.gethostname()]).encode() + b"\n")
    except OSError as error:
        _warn_unwatched(f"process 0 at {name}:{port} ({error.strerror or error})")
        return Peers(process, {}, {})
    return Peers(process, {0: connection}, {0: name})


def _accept(server: socket.socket, processes: int) -> Peers:
    deadline = time.monotonic() + _CONNECT
    connections, hosts = {}, {}
    while len(connections) < processes - 1 and (left := deadline - time.monotonic()) > 0:
        server.settimeout(left)
        with contextlib.suppress(OSError, ValueError, TypeError):  # something else may knock here
            connection, _ = server.accept()
            connection.settimeout(5)
            with connection.makefile() as lines:
                process, name = json.loads(lines.readline())
            if process in range(1, processes):
                connections[process], hosts[process] = connection, name
    if unwatched := sorted(set(range(1, processes)) - connections.keys()):
        _warn_unwatched("process " + ", ".join(map(str, unwatched)))
    return Peers(0, connections, hosts)


def _warn_unwatched(what: str) -> None:
    print(f"warning: {what} cannot be watched; if it is lost, only jax tells, after 100 s", file=sys.stderr, flush=True)


def _missing(numbers: list[int], timeout: int, where: str = "") -> Absent:
    names = ", ".join(map(str, numbers))
    return Absent(
        f"process {names}{where} did not join within {timeout} s; look at its host, or raise --connect_timeout"
    )


def several() -> bool:
    """True where this process has joined others."""
    return _peers is not None or jax.distributed.is_initialized()


def is_main() -> bool:
    """True in the process that writes what only one may write."""
    return jax.process_index() == 0


def finish() -> None:
    """The end of a run that did not fail: waits for the others, so that a fault of theirs is reported here too."""
    if _peers is not None:
        _peers.finish()


def fail(status: int, message: str) -> None:
    """Where this process is one of several it ends here, and the others hear why; the error is printed before."""
    if _peers is not None:
        _peers.fail(status, message)
    if several():
        host.end_at_once(status)  # jax would wait five minutes for the others at its end


def expect_news() -> None:
    """Waits for word that another process failed, which ends this one: a collective fails at the same moment."""
    if _peers is not None:
        time.sleep(_NEWS)


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
