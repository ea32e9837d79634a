"""`launch/tpu_pod.sh` against a stand-in for gcloud and the machines of a slice."""

import os
import signal

import pytest

from tests.launch.world import FLAGS, SETTINGS, one_error, until


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
