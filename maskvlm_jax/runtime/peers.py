"""Tells the processes of a run of each other's end, so that none waits for one that is gone.

JAX alone does so after its heartbeat's 100 seconds, by a stack trace, and until then a collective waits. Here each
process holds a connection to process 0, on which nothing is sent while all is well. The system closes it when the
process ends, however it ends; last words on it say why, where there was time for them. (Workers that read data are
spawned: a forked one would hold a copy of the connection.)
"""

import contextlib
import json
import selectors
import socket
import sys
import threading
import time
from typing import Any

from maskvlm_jax.runtime import host
from maskvlm_jax.runtime.errors import Absent

# Of a machine that vanishes nothing is heard; the system then closes the connection after 20 + 4 x 10 s. Kernels
# answer for their processes, so one that is slow or stands still is not taken for lost.
_KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}
_OWN_ERROR = 1.0  # seconds that this process has to tell its own error, where another's has come
_LEAVE = 5.0  # seconds that process 0 gives the others to leave before it: JAX ends them noisily once it is gone


class Peers:
    """This process's connections, watched by a thread that ends the process where another has failed or is lost.

    Args:
        process: which process this is.
        connections: in process 0 to each of the others by number, elsewhere to process 0.
        hosts: names of the machines at the other ends.
    """

    def __init__(self, process: int, connections: dict[int, socket.socket], hosts: dict[int, str]):
        self._process, self._hosts = process, hosts
        self._connections, self._ready, self._over = dict(connections), set(), not connections
        self._failing, self._finished, self._lock = threading.Event(), threading.Event(), threading.Lock()
        self._selector = selectors.DefaultSelector()
        for number, connection in connections.items():
            _keep_alive(connection)
            self._selector.register(connection, selectors.EVENT_READ, (number, bytearray()))
        if self._over:
            self._finished.set()
        self._watching = threading.Thread(target=self._watch, daemon=True, name="peers")
        self._watching.start()

    def finish(self) -> None:
        """Waits until all processes have come here: until then one may still fail, and the others must hear of it."""
        if self._process == 0:
            self._come(0)
        else:
            self._send({"ready": self._process})
        self._finished.wait()

    def fail(self, status: int, message: str) -> None:
        """Tells the others that this process ends; the caller has printed why, and ends it."""
        self._failing.set()
        self._send({"process": self._process, "host": socket.gethostname(), "status": status, "message": message})
        if self._process == 0:
            self._watching.join(_LEAVE)

    def _watch(self) -> None:
        while self._connections:
            for key, _ in self._selector.select():
                number, buffer = key.data
                data = _receive(key.fileobj)
                buffer += data
                while b"\n" in buffer:
                    line, _, buffer[:] = bytes(buffer).partition(b"\n")
                    self._hear(number, json.loads(line))
                if not data:
                    self._selector.unregister(key.fileobj)
                    del self._connections[number]
                    if not (self._over or self._failing.is_set()):
                        self._end({"process": number, "host": self._hosts[number]})

    def _hear(self, number: int, word: dict[str, Any]) -> None:
        if "ready" not in word:
            self._end(word)
        elif self._process == 0:
            self._come(number)
        else:
            self._over = True
            self._finished.set()

    def _come(self, number: int) -> None:
        """In process 0: one has finished; where it is the last, all hear so."""
        with self._lock:
            self._ready.add(number)
            self._over = self._ready >= {0, *self._hosts}
        if self._over:
            self._send({"ready": 0})
            self._finished.set()

    def _end(self, word: dict[str, Any]) -> None:
        """Ends this process because of another."""
        if self._process == 0:
            self._send(word, but=word["process"])
        if self._failing.wait(_OWN_ERROR if "message" in word else 0):
            return  # the main thread is telling an error of its own, often the same
        name = f"process {word['process']} on {word['host']}"
        if "message" in word:
            message = f"{name} ended: {word['message']}"
        else:
            message = f"{name} was lost, killed or with its machine; the same command goes on from the last checkpoint"
        print(f"error: {message}", file=sys.stderr, flush=True)
        if self._process == 0:
            self._let_leave()
        host.end_at_once(word.get("status", Absent.status))

    def _let_leave(self) -> None:
        deadline = time.monotonic() + _LEAVE
        for connection in self._connections.values():
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            while _receive(connection):
                pass

    def _send(self, word: dict[str, Any], *, but: int = -1) -> None:
        for number, connection in list(self._connections.items()):
            if number != but:
                with contextlib.suppress(OSError):
                    connection.sendall(json.dumps(word).encode() + b"\n")


def _receive(connection: socket.socket) -> bytes:
    """What has come; nothing where the other end is gone."""
    try:
        return connection.recv(1 << 16)
    except OSError:
        return b""


def _keep_alive(connection: socket.socket) -> None:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):  # Linux has all of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
