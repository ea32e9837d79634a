"""The server in a process of its own, as a browser meets it."""

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.conftest import ROOT


@dataclass
class Served:
    """A server that runs.

    Attributes:
        address: "http://127.0.0.1:PORT".
        folder: of its pictures.
        errors: the file that its standard error goes to.
    """

    address: str
    folder: Path
    errors: Path
    process: subprocess.Popen

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def memory(self) -> int:
        """Bytes that are resident."""
        return psutil.Process(self.process.pid).memory_info().rss

    def stop(self) -> int:
        """Ctrl-C; returns the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)


@contextlib.contextmanager
def served(base: Path, environment: dict[str, str], *, count: int = 48, size: int = 96) -> Iterator[Served]:
    """Serves `count` scenes of `size` pixels; afterwards its terminal must have shown nothing but Ctrl-C's line."""
    errors = base / "errors.txt"
    command = [sys.executable, "-m", "tests.search.fake", base / "scenes", str(count), str(size)]
    with (
        errors.open("w") as file,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=file, text=True) as process,
    ):
        try:
            told = process.stdout.readline()
            address = re.search(r"http://\S+(?=/ )", told)
            assert address, told + errors.read_text()
            here = Served(address[0], base / "scenes", errors, process)
            yield here
            assert process.poll() is not None or here.stop() == 130
        finally:
            process.kill()
    assert errors.read_text() == "stopped\n"
