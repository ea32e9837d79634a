"""Planning for TPU slices: what is said, what is tried where a run does not fit, and budgets of the named sizes.

The slow ones compile with libtpu: python -m pytest -m slow tests/plan/test_planner.py, some minutes each. Budgets
are recorded in tests/reference/budgets.json by RECORD_BUDGETS=1 in front of that.
"""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest

from configs import pretrain
from maskvlm_jax.plan import __main__ as plan
from maskvlm_jax.plan import planner, slices, tpu_compiler
from maskvlm_jax.plan.hlo import Program
from maskvlm_jax.plan.slices import GIB
from maskvlm_jax.runtime import sharding
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.training import build
from tests.conftest import ROOT, toy_config

BUDGETS = ROOT / "tests" / "reference" / "budgets.json"
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


def too_large(needed: float, state: float = 4.0) -> tpu_compiler.TooLarge:
    return tpu_compiler.TooLarge(needed * GIB, 16 * GIB, state * GIB)


@pytest.mark.parametrize(
    "told",
    [
        "RESOURCE_EXHAUSTED: E1000: Ran out of memory on HBM, the total memory required for HLO temporaries (54.88G) "
        "exceeds available HBM (15.75G). HLO module: jit_step.",
        "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 54.88G of 15.75G hbm.",
    ],
)
def test_what_libtpu_says_of_a_program_that_does_not_fit_is_read(told):
    found = tpu_compiler.too_large(RuntimeError(told), 3.0)
    assert (found.needed, found.available, found.state) == (54.88 * GIB, 15.75 * GIB, 3.0)
    assert str(found) == "needs 54.9 GiB a chip, there are 15.8"
    assert tpu_compiler.too_large(RuntimeError("INTERNAL: something else"), 3.0) is None


def test_splitting_the_state_comes_first_where_it_suffices():
    config, where = pretrain.get_config("size=base,data=coco"), slices.parse("v5e-16")
    assert planner.candidates(config, too_large(19), where)[0] == {"mesh.fsdp": 16}
    assert planner.candidates(config, too_large(25), where)[0] == {"model.shared.remat": "dots"}
    config.mesh.fsdp = 16
    assert all("mesh.fsdp" not in values for values in planner.candidates(config, too_large(19), where))


def test_microbatches_are_as_many_as_the_memory_asks_for():
    config, where = pretrain.get_config("size=base,data=coco"), slices.parse("v5e-16")
    parts = [values.get("optim.accumulate") for values in planner.candidates(config, too_large(100), where)]
    assert parts == [None, None, None, 8, 16, 32]


def test_the_batch_that_should_fit_splits_evenly():
    config = pretrain.get_config("size=base,data=coco")
    assert planner.largest_batch(config, too_large(20), slices.parse("v5e-16")) == 400
    assert planner.largest_batch(config, too_large(2_000), slices.parse("v5e-16")) == 0


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--slice=v5e-7"], "v5e comes in sizes 1, 4, 8"),
        ([], "no slice; give --slice=v5e-256"),
        (["--slice=v5e-8", "--config.optim.lrr=1"], "did you mean optim.lr?"),
        (["--slice=v5e-8", "--config.optim.accumulate=0"], "optim.accumulate is 0; give at least 1"),
        (["--slice=v5e-8", "--program=/nowhere/step.txt"], "/nowhere/step.txt cannot be written"),
    ],
)
def test_a_wrong_command_is_told_in_one_line(flags, told):
    command = [sys.executable, "-m", "maskvlm_jax.plan", "--config=configs/pretrain.py", *flags]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert process.returncode == 2 and process.stderr.count("\n") == 1 and told in process.stderr


def test_what_a_run_refuses_is_refused_by_its_plan(monkeypatch):
    config = pretrain.get_config("recipe=mamo")
    config.optim.ema_decay = 0.0
    with pytest.raises(UserError, match=r"set --config\.optim\.ema_decay=0\.995"):
        planner.run(config, slices.parse("v5e-8"), attempts=False, price=1.0, as_json=False)


def test_ctrl_c_while_a_plan_compiles_is_one_line(monkeypatch, capsys):
    def interrupted(argv, *, tasks):
        raise KeyboardInterrupt

    monkeypatch.setattr(plan.command_line, "parse", interrupted)
    assert plan.main() == 130
    assert capsys.readouterr().err == "stopped\n"


def test_a_run_given_in_epochs_is_as_long_as_its_sets_are_large():
    assert planner.pictures(pretrain.get_config("size=base,data=coco")) == 113_287
    assert planner.pictures(pretrain.get_config("size=base,data=coco+vg")) == 213_287
    assert planner.pictures(pretrain.get_config("size=base,data=files")) is None
    with pytest.raises(UserError, match=r"the steps of 50 epochs follow from the data; give --config\.steps"):
        planner.run(
            pretrain.get_config("size=base,data=files"),
            slices.parse("v5e-8"),
            attempts=False,
            price=1.0,
            as_json=False,
        )


def test_without_libtpu_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setattr(tpu_compiler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "jax\[tpu\]=='):
        planner.make_plan(toy_config(), slices.parse("v5e-8"))


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e-1", "v5e-8", "v5e-256", "v6e-64", "v4-32", "v5p-32", "2xv5e-16"])
def test_libtpu_describes_every_slice_and_the_mesh_covers_it(name):
    where = slices.parse(name)
    mesh = sharding.make_mesh(data=-1, fsdp=1, model=1, devices=tpu_compiler.devices_of(where))
    assert mesh.size == where.all_chips
    in_order = [getattr(device, "slice_index", None) or 0 for device in mesh.devices.ravel()]
    assert in_order == sorted(in_order)


def collective_bytes(program: Program) -> dict[str, int]:
    """Bytes a step by kind, of groups of more than one device."""
    found: dict[str, int] = {}
    for part in program.collectives():
        if part.groups.shape[1] > 1:
            found[part.kind] = found.get(part.kind, 0) + part.times * part.size
    return found


def above(found: dict, recorded: dict) -> dict[str, str]:
    """Numbers more than a tenth above what is recorded, with both."""
    return {
        name: f"{recorded.get(name, 0):,} -> {value:,}"
        for name, value in found.items()
        if value > 1.1 * recorded.get(name, 0) + 4096
    }


def above_budget(name: str, found: dict) -> dict[str, str]:
    """What is above the record, which RECORD_BUDGETS=1 writes first."""
    records = json.loads(BUDGETS.read_text())
    if os.environ.get("RECORD_BUDGETS"):
        records[name] = found
        BUDGETS.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
    if name not in records:
        pytest.skip(f"no budget of {name} is recorded; RECORD_BUDGETS=1 records it")
    return above(found, records[name])


def test_a_collective_that_is_new_or_larger_is_named_with_both_numbers():
    recorded = {"all-reduce": 1_000_000, "all-gather": 10}
    assert above({"all-reduce": 1_050_000}, recorded) == {}
    assert above({"all-reduce": 2_000_000}, recorded) == {"all-reduce": "1,000,000 -> 2,000,000"}
    assert above({"all-to-all": 500_000}, recorded) == {"all-to-all": "0 -> 500,000"}


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 12), reason="recorded with the jax of Python 3.12")
@pytest.mark.parametrize("axes", [pytest.param((8, 1, 1), marks=pytest.mark.slow), (2, 2, 2)], ids=str)
def test_collectives_of_eight_cpu_devices_are_those_recorded(axes):
    config, mesh = toy_config(batch_size=16), sharding.make_mesh(**dict(zip(sharding.AXES, axes, strict=True)))
    with jax.set_mesh(mesh):
        built = build.build(config, mesh)
        lowered = built.step.lower(*build.described(config, built, mesh))
        compiled = lowered.compile({"xla_backend_optimization_level": 0})
    assert above_budget("cpu " + "x".join(map(str, axes)), collective_bytes(Program(compiled.as_text()))) == {}


def shallow(size: str, per_chip: int, chips: int):
    """A named size with one block in each stack, no rematerialisation."""
    config = pretrain.get_config(f"size={size},data=coco")
    for part in ("image", "text", "fusion"):
        config.model[part].depth = 1
    config.objectives.masked_image.decoder.depth = 1
    config.batch_size = per_chip * chips
    return config


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e-8", "v5e-256", "v6e-64"])
@pytest.mark.parametrize("size", ["base", "large"])
def test_a_named_size_takes_of_a_slice_what_is_recorded(size, name):
    where = slices.parse(name)
    config = shallow(size, 4, where.all_chips)
    found = planner.make_plan(config, where, {"xla_optimization_level": "EFFORT_O0"})
    values = {kind: round(values["bytes"]) for kind, values in found.collectives.items()}
    values |= {f"{kind} count": round(values["count"]) for kind, values in found.collectives.items()}
    values |= {"peak memory": found.peak_bytes, "temporaries": found.temporary_bytes}
    assert above_budget(f"{size} {name}", values) == {}


@needs_libtpu
@pytest.mark.slow
def test_an_impossible_batch_is_refused_with_its_gigabytes():
    command = [sys.executable, "-m", "maskvlm_jax.plan", "--config=configs/pretrain.py:size=base,data=coco"]
    command += ["--slice=v5e-8", "--config.batch_size=4096", "--notry"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert process.returncode == 2
    assert "does not fit: batch_size 4,096 on v5e-8 needs" in process.stderr and "GiB a chip" in process.stderr
