"""Huge pages, in processes of their own: glibc reads the setting at a process's start."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from maskvlm_jax.runtime import host
from tests.conftest import ROOT

GLIBC = ("glibc", "2.36")


@pytest.fixture
def on_request(tmp_path):
    enabled = tmp_path / "enabled"
    enabled.write_text("always [madvise] never\n")
    return enabled


def test_what_is_set_already_stays(on_request):
    assert host._with_huge_pages({"A": "b"}, GLIBC, on_request) == {
        "A": "b",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    kept = {"GLIBC_TUNABLES": "glibc.malloc.check=3"}
    assert host._with_huge_pages(kept, GLIBC, on_request)["GLIBC_TUNABLES"] == (
        "glibc.malloc.check=3:glibc.malloc.hugetlb=1"
    )
    assert kept == {"GLIBC_TUNABLES": "glibc.malloc.check=3"}


def test_nothing_starts_anew_where_it_would_change_nothing(on_request, tmp_path):
    for tunables in ("glibc.malloc.hugetlb=1", "glibc.malloc.hugetlb=0"):
        assert host._with_huge_pages({"GLIBC_TUNABLES": tunables}, GLIBC, on_request) is None
    for libc in (("glibc", "2.34"), ("musl", "1.2.4"), ("", "")):
        assert host._with_huge_pages({}, libc, on_request) is None
    assert host._with_huge_pages({}, GLIBC, tmp_path / "absent") is None
    for mode in ("[always] madvise never", "always madvise [never]"):
        on_request.write_text(mode)
        assert host._with_huge_pages({}, GLIBC, on_request) is None


def test_a_process_that_starts_anew_keeps_its_number_and_its_arguments():
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    if host._with_huge_pages(environment, platform.libc_ver(), host._ASKED_FOR) is None:
        pytest.skip("this machine gives no huge pages, or gives them unasked")
    command = [sys.executable, "-m", "tests.runtime.starts_anew", "a b", "--c=d"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        told = json.loads(process.communicate(timeout=60)[0])
    assert told == [process.pid, "glibc.malloc.hugetlb=1", ["a b", "--c=d"]]


def prepared(
    monkeypatch, plugins: list[str], flags: str = "", threefry: str = "", kept: bool = False, **options
) -> list[str]:
    """XLA_FLAGS after `prepare_accelerator`, where JAX has these plugins."""
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "absent")  # so that it is put back
    if not kept:
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("JAX_THREEFRY_GPU_KERNEL_LOWERING", threefry or "absent")  # so that it is put back
    if not threefry:
        monkeypatch.delenv("JAX_THREEFRY_GPU_KERNEL_LOWERING")
    monkeypatch.setattr(host.pkgutil, "iter_modules", lambda path: [SimpleNamespace(name=name) for name in plugins])
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[]))
    host.prepare_accelerator(**options)
    return os.environ["XLA_FLAGS"].split()


@pytest.fixture(autouse=True)
def no_jax(monkeypatch):
    """Its settings are those of all tests."""
    monkeypatch.delitem(sys.modules, "jax", raising=False)


def test_flags_are_for_nvidia_alone_and_never_in_the_users_way(monkeypatch):
    assert prepared(monkeypatch, []) == prepared(monkeypatch, ["libtpu"]) == []
    flags = prepared(monkeypatch, ["xla_cuda13"], "--xla_gpu_enable_triton_gemm=true --xla_dump_to=here")
    assert "--xla_gpu_enable_triton_gemm=true" in flags and "--xla_gpu_enable_triton_gemm=false" not in flags
    assert "--xla_dump_to=here" in flags and "--xla_gpu_deterministic_ops=true" not in flags
    assert os.environ["JAX_THREEFRY_GPU_KERNEL_LOWERING"] == "1"


def test_compiled_programs_are_kept_where_the_user_says_or_in_a_folder_of_theirs(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    prepared(monkeypatch, ["libtpu"])
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    prepared(monkeypatch, ["xla_cuda13"])
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "maskvlm_jax" / "compiled")
    prepared(monkeypatch, ["xla_cuda13"], kept=True)
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "absent"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert host.compiled_programs() == Path.home() / ".cache" / "maskvlm_jax" / "compiled"


@pytest.mark.parametrize(
    ("asked", "cores", "accelerator", "processes"),
    [(-1, 16, True, 14), (-1, 64, True, 16), (-1, 1, True, 0), (-1, 16, False, 0), (3, 16, False, 3), (0, 16, True, 0)],
)
def test_worker_processes_are_chosen_by_the_cores_beside_an_accelerator(
    asked, cores, accelerator, processes, monkeypatch
):
    monkeypatch.setattr(host, "cores", lambda: cores)
    assert host.worker_processes(asked, accelerator=accelerator) == processes


@pytest.mark.parametrize(("threefry", "told"), [("", [True]), ("0", []), ("1", [])])
def test_how_numbers_are_drawn_is_told_to_a_jax_that_is_there_and_left_as_it_was_asked_for(monkeypatch, threefry, told):
    heard = []
    jax = SimpleNamespace(config=SimpleNamespace(update=lambda name, value: heard.append(value)))
    monkeypatch.setitem(sys.modules, "jax", jax)
    prepared(monkeypatch, ["xla_cuda13"], threefry=threefry, kept=True)
    assert heard == told and os.environ["JAX_THREEFRY_GPU_KERNEL_LOWERING"] == (threefry or "1")


def test_deterministic_operations_are_asked_for_by_a_flag(monkeypatch):
    assert "--xla_gpu_deterministic_ops=true" in prepared(monkeypatch, ["xla_cuda13"], deterministic=True)
