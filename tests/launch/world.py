"""The world that the launch scripts see: stand-ins for gcloud, Slurm and a slice's machines, which record every call.

What the scripts send to a slice's workers is really run, in a folder for each worker. The stand-ins answer as the real
tools do as far as their documentation and sources tell; nothing here has seen a real slice or cluster.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import ROOT

LAUNCH = ROOT / "launch"


SETTINGS = {"PROJECT": "p", "ZONE": "z", "NAME": "n", "TYPE": "v5litepod-16", "VERSION": "v2-alpha-tpuv5-lite"}


FLAGS = ["--config=configs/pretrain.py", "--workdir=/mnt/bucket/runs/a"]


STAND_IN = Path(__file__).with_name("stand_in.py")


TOOLS = ("gcloud", "sudo", "python3", "mountpoint", "curl", "lsb_release", "srun", "scancel", "scontrol")


class World:
    """A folder with a repository, the stand-ins and what they recorded."""

    def __init__(self, folder: Path):
        self.folder, self.repository, self.bin = folder, folder / "repository", folder / "bin"
        self.bin.mkdir()
        program = self.bin / "stand_in"
        program.write_text(f"#!{sys.executable} -SE\n" + STAND_IN.read_text())
        program.chmod(0o755)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(program)
        (self.repository / "maskvlm_jax").mkdir(parents=True)
        (self.repository / "maskvlm_jax" / "main.py").touch()
        (self.repository / "requirements.txt").touch()
        shutil.copytree(LAUNCH, self.repository / "launch")
        self.track()
        self.set(plan=["exit 0"], futures=[["WAITING_FOR_RESOURCES", "ACTIVE"]] * 3, preempted="None")
        path = f"{self.bin}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        self.env = {"PATH": path, "HOME": str(folder), "WORLD": str(folder), "POLL": "0.05", "SETTLE": "5"}

    def track(self) -> None:
        subprocess.run("git init -q && git add .", shell=True, cwd=self.repository, check=True)

    def set(self, **files) -> None:
        for name, value in files.items():
            (self.folder / f"{name}.json").write_text(json.dumps(value))

    def start(self, *command: str, **env: str) -> subprocess.Popen:
        pipe = subprocess.PIPE
        env = self.env | env
        return subprocess.Popen(
            command, cwd=self.repository, env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def run(self, *command: str, **env: str) -> subprocess.CompletedProcess:
        process = self.start(*command, **env)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def pod(self, *arguments: str, **env: str) -> subprocess.CompletedProcess:
        return self.run("launch/tpu_pod.sh", *arguments, **(SETTINGS | env))

    def calls(self, *tools: str) -> list[dict]:
        log = self.folder / "calls.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [line for line in lines if not tools or line["tool"] in tools]

    def verbs(self) -> list[str]:
        """What gcloud was asked to do, looking aside."""
        verbs = [call["args"][3] for call in self.calls("gcloud")]
        return [verb for verb in verbs if verb not in ("describe", "ssh")]

    def steps(self) -> list[str]:
        """Steps of the script on the workers, by time: "all start"."""
        steps = []
        for call in self.calls("gcloud"):
            if call["args"][3] == "ssh":
                workers, command = (flag_of(call, name) for name in ("worker", "command"))
                steps += [f"{workers} {step}" for step in re.findall(r"tpu_pod\.sh worker-(\w+)", command)]
        return steps

    def runs(self) -> list[list[str]]:
        return [call["args"] for call in self.calls("python") if "got" not in call]

    def end(self) -> None:
        for pid in self.folder.glob("workers/*/.maskvlm_jax/pid"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(pid.read_text()), signal.SIGKILL)


def flag_of(call: dict, name: str) -> str:
    return next(arg.partition("=")[2] for arg in call["args"] if arg.startswith(f"--{name}="))


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def one_error(process: subprocess.CompletedProcess) -> str:
    assert process.returncode == 2
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1, process.stderr
    return process.stderr
