"""What is measured on an accelerator, at toy size on a CPU: its numbers, kernels and parts."""

import importlib.util
import json
import subprocess
import sys

import pytest

from benchmarks import accelerator, gpu_program, profile_step
from tests.conftest import ROOT, TOY

PROGRAM = """
%products (a: f32[2,3], b: f32[3,4]) -> f32[2,4] {
  ROOT %d = f32[2,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}
}
%bells (a: f32[2,4]) -> f32[2,4] {
  %e = f32[2,4]{1,0} erf(%a)
  ROOT %m = f32[2,4]{1,0} multiply(%e, %a)
}
ENTRY %main (x: f32[2,3], w: f32[3,4]) -> f32[2,4] {
  %ynn_fusion.1 = f32[2,4]{1,0} fusion(%x, %w), kind=kCustom, calls=%products, metadata={op_name="jit(step)/dot"}
  %fusion.2 = f32[2,4]{1,0} fusion(%ynn_fusion.1), kind=kLoop, calls=%bells, metadata={op_name="jit(step)/mul"}
  %copy.3 = f32[4,2]{1,0} copy(%fusion.2), metadata={op_name="jit(step)/transpose"}
  ROOT %add.4 = f32[2,4]{1,0} add(%fusion.2, %fusion.2)
}
"""


def test_kinds_of_kernels_and_their_own_times():
    found = profile_step.kinds(PROGRAM)
    assert found["ynn_fusion.1"] == profile_step.PRODUCTS
    assert (found["fusion.2"], found["copy.3"], found["add.4"]) == ("GELU", "transposes", profile_step.OTHER)
    times = profile_step.own_times(
        [(0.0, 10.0, "outer"), (1.0, 2.0, "inner"), (4.0, 3.0, "inner"), (11.0, 1.0, "next")]
    )
    assert times == {"outer": 5.0, "inner": 5.0, "next": 1.0}


@pytest.mark.slow
def test_profile_step_accounts_for_all_cores(benchmark):
    values = {name: value for name, value in TOY.items() if name.startswith(("model.", "objectives."))}
    settings = [flag for name, value in values.items() for flag in ("--set", f"{name}={value}")]
    process = benchmark("profile_step.py", "--steps", 1, "--json", *settings)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    spent = result["core_milliseconds"]
    assert sum(spent.values()) == pytest.approx(result["cores"] * result["step_milliseconds"])
    assert spent[profile_step.PRODUCTS] > 0 and spent["GELU"] > 0


@pytest.fixture(scope="module")
def measured(cli_environment, tmp_path_factory):
    """Runs parts of `accelerator.sh` at toy size; returns the finished process and OUT/results.jsonl by part."""
    out = tmp_path_factory.mktemp("accelerator")

    def run(*flags: str) -> tuple[subprocess.CompletedProcess, dict[str, dict]]:
        command = [ROOT / "benchmarks" / "accelerator.sh", out, "--dry", *flags]
        environment = cli_environment | {"PYTHON": sys.executable}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        lines = map(json.loads, (out / "results.jsonl").read_text().splitlines())
        return done, {line["part"]: line for line in lines}

    return run


@pytest.mark.slow
def test_an_accelerators_numbers_are_held_against_a_cpus(measured):
    parts = ["numerics/reference", "numerics/bfloat16,default"]
    done, results = measured("--only", *parts)
    assert done.returncode == 0, done.stdout + done.stderr
    errors = results[parts[1]]["result"]
    assert max(map(abs, errors["losses"].values())) < 0.01 and 1e-4 < errors["gradients"]["all"] < 0.05
    assert max(map(abs, errors["gradient_norms"].values())) < 0.02
    assert {"kernels", "biases of dense layers", "tokens and positions", "fusion"} <= errors["gradients"].keys()
    again, same = measured("--only", *parts)
    assert same == results and "done" not in again.stdout  # what is there is not run again
    assert "| gradient, fusion |" in again.stdout


@pytest.mark.slow
def test_bfloat16_makes_no_group_s_gradient_longer_or_shorter(benchmark, tmp_path):
    sizes = ["--size", "tiny", "--set", "batch_size=64", "--json"]
    assert benchmark("numerics.py", "--write", tmp_path / "golden.npz", *sizes).returncode == 0
    process = benchmark("numerics.py", "--against", tmp_path / "golden.npz", "--dtype", "bfloat16", *sizes)
    found = json.loads(process.stdout)
    assert max(map(abs, found["gradient_norms"].values())) < 0.005
    assert max(map(abs, found["losses"].values())) < 0.001 and found["gradients"]["all"] < 0.03


def test_what_is_timed_compiles_beside_others_and_takes_its_time_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    results = accelerator.Results(tmp_path)
    # The second is ready first and waits; the third ends without its turn.
    timed = ["-m", "tests.takes_its_time"]
    commands = {"slow": [*timed, "0.5"], "quick": [*timed, "0"], "broken": ["-c", "raise SystemExit(3)"]}
    parts = [accelerator.Part(name, [sys.executable, *x], 20, in_turns=True) for name, x in commands.items()]
    results.take_turns(parts, patience=20)
    found = results.read()
    assert found["broken"]["failed"] == "3"
    (first, ended), (began, _) = sorted(found[name]["result"] for name in ("slow", "quick"))
    assert first < ended <= began


def test_a_part_that_failed_is_told():
    tables = accelerator.tables({"tests": {"part": "tests", "seconds": 1.0, "failed": "longer than 150 s"}})
    assert list(tables) == ["failed: tests: longer than 150 s"]


@pytest.mark.slow
def test_every_part_of_the_accelerators_script_runs_at_toy_size(measured):
    done, results = measured("--seconds", "1200")
    assert done.returncode == 0, done.stdout + done.stderr
    assert results["bits/as it is"]["result"]["equal"] and results["bits/deterministic"]["result"]["equal"]
    assert results["bits/as it is"]["result"]["resumed_at"] > 0
    assert results["tests"]["result"]["failed"] == []
    assert results["curves"]["result"]["largest_difference"] < 0.01


GPU_PROGRAM = """
HloModule step

ENTRY %main (x: bf16[4,8], w: f32[8,2]) -> f32[4,2] {
  %x = bf16[4,8]{1,0} parameter(0)
  %w = f32[8,2]{1,0} parameter(1)
  %loop_convert_fusion.3 = bf16[8,2]{1,0} fusion(%w), kind=kLoop, calls=%f, metadata={op_name="jit(f)/jvp(itm)/mul"}
  %loop_convert_fusion = bf16[8,2]{1,0} fusion(%w), kind=kLoop, calls=%f
  %call = (f32[4,2]{1,0}, s8[100]{0}) custom-call(%x, %loop_convert_fusion.3), custom_call_target="__cublas$lt$matmul" @
  ROOT %out = f32[4,2]{1,0} get-tuple-element(%call), index=0
}
""".replace("@", 'metadata={op_name="jit(f)/jvp(itm)/image_encoder/dot"}')


def test_the_program_for_a_gpu_needs_its_plugin(benchmark):
    if importlib.util.find_spec("jax_plugins") and importlib.util.find_spec("jax_plugins.xla_cuda13"):
        pytest.skip("it is installed, and compiling takes minutes")
    process = benchmark("gpu_program.py", "--size", "tiny")
    assert (process.returncode, len(process.stderr.splitlines())) == (2, 1)
    assert 'pip install "jax[cuda13]"' in process.stderr


def test_bytes_of_a_program_by_kind_of_kernel():
    kinds, parts = gpu_program.traffic(GPU_PROGRAM)
    assert kinds == {"__cublas$lt$matmul": (1, 64 + 32 + 32 + 100), "loop_convert_fusion": (2, 2 * (64 + 32))}
    assert parts == {"image encoder": 64 + 32 + 32 + 100, "heads and losses": 64 + 32, gpu_program.UNSAID: 64 + 32}


def test_a_roofline_is_the_slower_of_products_and_memory():
    lines = gpu_program.roofline(
        {"a": {"teraflop": 78.3, "gigabytes": 30.0}, "optimizer": {"teraflop": 0.0, "gigabytes": 150.0}}
    )
    assert lines[2:] == [
        "| a | 78.3 | 100.0 | 30.0 | 10.0 | 100.0 |",
        "| optimizer | 0.0 | 0.0 | 150.0 | 50.0 | 50.0 |",
        "| together | | 100.0 | | | 150.0: products are 67% of it |",
    ]
