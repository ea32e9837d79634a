"""One program under many names: gcloud, sudo, srun and the other tools that the launch scripts call.

$WORLD holds calls.jsonl, plan.json (what the n-th start of the run does, on each worker), futures.json (states of the
slices that will be created), slice.json (the one there is) and workers/. `World` copies it and names its interpreter.
"""

import contextlib
import json
import os
import signal
import sys
import time

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
        log.write(json.dumps({"tool": name, "worker": worker, "args": args, **more}) + "\n")


def die(message):
    sys.stderr.write(message + "\n")
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
            with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(pid) as file:
                os.kill(int(file.read()), signal.SIGKILL)
        shutil.rmtree(os.path.join(world, "workers"), ignore_errors=True)
        os.remove(os.path.join(world, "slice.json"))
    elif os.path.exists(os.path.join(world, "offline")):
        die("ERROR: (gcloud) could not reach tpu.googleapis.com")
    elif slice is None:
        die("ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource 'n' was not found")
    elif (group, verb) == ("queued-resources", "describe"):
        state, *later = slice["queued"]
        if flag["format"] == "yaml(state)":
            print("state:\n  failedData:\n    error:\n      message: no capacity\n  state: " + state)
        else:
            print(state)
            write("slice.json", {**slice, "queued": later or [state]})
    elif (group, verb) == ("tpu-vm", "describe"):
        print(slice["node"])
    elif slice["node"] != "READY":
        die("ERROR: (gcloud) this TPU is in state " + slice["node"])
    else:
        on_workers(verb, words, flag)


def on_workers(verb, words, flag):
    import shutil  # here: most calls do without, and start sooner
    import subprocess

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
        print("JobId=7 JobName=maskvlm\n   PreemptEligibleTime=2026-11-22T10 PreemptTime=" + read("preempted.json"))


def mountpoint():
    sys.exit(not os.path.exists(home + "/mounted"))


def gcsfuse():
    record()
    open(home + "/mounted", "w").close()


def lsb_release():
    print("jammy")


globals().get(name, record)()
