"""Eight CPU devices, set before jax starts; toy runs that are small enough to be many."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ.setdefault(
    "XLA_FLAGS",
    # Programs of toy size: quick to compile counts for more than quick to run.
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    # Eight devices share few cores, with other work beside them: one that others wait for longer than XLA's 40 s is
    # late, and no reason to end the process.
    "--xla_cpu_collective_call_terminate_timeout_seconds=300",
)

import pytest

ROOT = Path(__file__).parent.parent

# A run that takes seconds: every part is there, each as small as it can be.
TOY = {
    "steps": 6,
    "batch_size": 8,
    "data.tokenizer_captions": 100,
    "log_every": 1,
    "eval_every": 3,
    "checkpoint_every": 2,
    "model.image.image_size": 32,
    "model.image.patch": 8,
    "model.text.max_length": 20,
    "masking.image_cell": 2,
    "optim.warmup_steps": 2,
    "evaluation.limit": 12,
    "evaluation.batch_size": 8,
    "evaluation.rerank_k": 4,
    "evaluation.figures": 2,
    **{f"model.{part}.width": 32 for part in ("image", "text", "fusion")},
    **{f"model.{part}.heads": 2 for part in ("image", "text", "fusion")},
    **{f"model.{part}.depth": 1 for part in ("image", "text")},
    "model.embed": 16,
    "objectives.masked_image.decoder.width": 32,
    "objectives.masked_image.decoder.heads": 2,
}


# Files that take minutes: the workers begin with these, so that none is left with one when the others have nothing.
LONG = ("training/test_train_step", "test_failures", "training/test_resume", "runtime/test_buckets", "test_frozen")
LONG += (
    "models/test_joint",
    "serving/exports/test_exporting",
    "test_benchmarks",
    "training/test_freeze",
    "test_how_to_add",
)
LONG += ("notebooks/test_notebooks",)


def pytest_configure(config):
    if hasattr(config.option, "loadscopereorder"):  # of pytest-xdist, which would begin with the files of most tests
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    rank = {str(ROOT / "tests" / f"{name}.py"): place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(str(item.path), len(rank)))


def toy_flags(**values) -> list[str]:
    """--config flags of the toy run; keyword names write dots as two underscores."""
    merged = TOY | {name.replace("__", "."): value for name, value in values.items()}
    return [f"--config.{name}={value}" for name, value in merged.items()]


def toy_config(structure: str = "", *, of=None, **values):
    """The toy run's config; `structure` is the text after the colon, `of` the config file, configs/pretrain.py."""
    from configs import pretrain
    from maskvlm_jax.settings import plain_values

    config = (of or pretrain).get_config(structure)
    there = plain_values.flatten(config.to_dict())
    with config.unlocked():
        # A recipe lacks some parts, and has some that follow from others.
        toy = {name: value for name, value in TOY.items() if name in there}
        for name in ("model.image.depth", "model.text.depth", "model.embed"):
            toy[name] = min(toy[name], there[name])
        for name, value in (toy | {name.replace("__", "."): value for name, value in values.items()}).items():
            block = config
            *path, last = name.split(".")
            for key in path:
                block = block[key]
            block[last] = value
    return config


@pytest.fixture(scope="session")
def cli_environment(tmp_path_factory):
    """The environment of subprocesses: one device, and compiled programs shared between them, by all workers."""
    base = tmp_path_factory.getbasetemp()
    # The workers of pytest-xdist have a folder each below one that they share.
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    return os.environ | {
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture(scope="session")
def cli(cli_environment):
    """Runs `python -m maskvlm_jax.main` without the seconds of its imports, see tests/forks.py; returns what it did."""
    command = [sys.executable, ROOT / "tests" / "forks.py"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=cli_environment, **pipes) as server:

        def run(*flags: str, timeout: int = 300) -> subprocess.CompletedProcess:
            argv = [str(flag) for flag in flags]
            server.stdin.write(json.dumps([timeout, argv]) + "\n")
            server.stdin.flush()
            reply = server.stdout.readline()
            assert reply, "tests/forks.py has ended"
            return subprocess.CompletedProcess(argv, *json.loads(reply))

        yield run
        server.stdin.close()


@pytest.fixture(scope="session")
def finished_run(cli, tmp_path_factory):
    """The workdir of a finished toy run and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "straight"
    process = cli("--config=configs/pretrain.py", f"--workdir={workdir}", *toy_flags())
    assert process.returncode == 0, process.stderr
    return workdir, process.stdout


@pytest.fixture
def copy_of_run(finished_run, tmp_path):
    """A workdir that a test may damage."""
    workdir = tmp_path / "copy"
    shutil.copytree(finished_run[0], workdir)
    return workdir


@pytest.fixture(scope="module")
def benchmark(cli_environment, tmp_path_factory):
    """Runs a script of the folder `benchmarks` from somewhere else; returns the finished process."""
    # Without PYTHONPATH, as a user calls it; compiled quickly, as nobody looks at the times.
    environment = {name: value for name, value in cli_environment.items() if name != "PYTHONPATH"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(script: str, *flags: str) -> subprocess.CompletedProcess:
        command = [sys.executable, ROOT / "benchmarks" / script, *map(str, flags)]
        return subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300)

    return run
