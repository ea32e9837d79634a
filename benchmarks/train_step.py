"""Times one training step on this machine, beside what its matrix products could reach.

    python benchmarks/train_step.py --size tiny --data scenes
    python benchmarks/train_step.py --size small --batch-size 32 --set model.shared.remat=full --json
    python benchmarks/train_step.py --shape torch-tiny

The config is that of `configs/pretrain.py`, the step the one that trains; only the batch is made up. A shape of
`benchmarks/shapes.py` puts its values on top of size small: `benchmarks/compare_torch.py` compares these with PyTorch.
Products of plain square matrices are timed before, between and after the steps, so that a machine that slows down shows
in both.
"""

import argparse
import ast
import difflib
import resource
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import shapes
from benchmarks.command import finish, wait_for_turn
from benchmarks.matmul import Matmul
from configs import common, data_sets, pretrain
from maskvlm_jax.models import attention
from maskvlm_jax.plan import flops
from maskvlm_jax.runtime import host, sharding
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.runtime.parameters import map_by_path
from maskvlm_jax.settings import plain_values, run_length
from maskvlm_jax.settings import rules as configs
from maskvlm_jax.training import build, train_step

# A parameter belongs to the first tower whose name its path has; the heads have the rest.
TOWERS = {
    "image encoder": ("/image_encoder/",),
    "text encoder": ("/text_encoder/",),
    "fusion": ("/fusion/",),
    "decoder": ("/decoder/",),
    "heads": ("/",),
}


def set_values(config: ConfigDict, settings: Iterable[str]) -> None:
    """Applies "KEY=VALUE" settings.

    Raises:
        UserError: no such key, or a value of another type.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: give KEY=VALUE")
        there = plain_values.flatten(config.to_dict())
        if key not in there:
            near = difflib.get_close_matches(key, there, n=1)
            raise UserError(f"there is no config key {key}" + (f"; did you mean {near[0]}?" if near else ""))
        try:
            config.update_from_flattened_dict({key: text if isinstance(there[key], str) else ast.literal_eval(text)})
        except (TypeError, ValueError, SyntaxError) as error:
            raise UserError(f"--set {setting}: {key} is a {type(there[key]).__name__}") from error


def shape_config(name: str, data: str = data_sets.DATA[0]) -> ConfigDict:
    """The config of a shape of `benchmarks/shapes.py`."""
    config = pretrain.get_config(f"size=small,data={data}")
    config.update_from_flattened_dict(shapes.SHAPES[name].settings())
    return config


def synthetic_batch(config: ConfigDict) -> dict[str, np.ndarray]:
    """A made-up batch of the config's sizes."""
    image, text, options = config.model.image, config.model.text, config.masking
    return shapes.synthetic_batch(
        batch_size=config.batch_size,
        image_size=image.image_size,
        patch=image.patch,
        mask_cell=options.image_cell,
        image_ratio=options.image_ratio,
        length=text.max_length,
        vocab=text.vocab_size,
        text_ratio=options.text_ratio,
    )


def compile_step(config: ConfigDict) -> tuple[Any, train_step.TrainState, dict[str, jax.Array], dict[str, float]]:
    """The compiled step, its first state and batch, and the seconds it took to trace and to compile."""
    mesh = sharding.make_mesh(**config.mesh)
    sharding.check_batch(config.batch_size, config.optim.accumulate, mesh)
    with jax.set_mesh(mesh):
        built = build.build(config, mesh)
        state, batch = built.init(), sharding.put(synthetic_batch(config), mesh)
        clock = time.perf_counter()
        lowered = built.step.lower(state, batch)
        traced = time.perf_counter()
        compiled = lowered.compile()
        seconds = {"trace": traced - clock, "compile": time.perf_counter() - traced}
    return compiled, state, batch, seconds


def time_steps(
    step: Any, state: Any, batch: dict[str, jax.Array], *, steps: int, matmul: Matmul
) -> tuple[list[float], float]:
    """Seconds of each step, after one that warms up, with `matmul` sampled around each; and the mean of as many in a
    row, as training takes them: the host makes the next one ready while the device works."""
    host.give_back_freed_memory()
    state, _ = jax.block_until_ready(step(state, batch))
    seconds = []
    matmul.measure()
    for _ in range(steps):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        seconds.append(time.perf_counter() - start)
        matmul.measure()
    start = time.perf_counter()
    for _ in range(steps):
        state, _ = step(state, batch)
    jax.block_until_ready(state)
    return seconds, (time.perf_counter() - start) / steps


def run(config: ConfigDict, steps: int) -> dict[str, Any]:
    """All measurements by name; times in seconds, memory in MiB."""
    configs.check(config)
    batch_size = config.batch_size
    forward = flops.flops_per_pair(config, batch_size // config.optim.accumulate)
    training = flops.train_flops_per_pair(config, batch_size // config.optim.accumulate)
    dtype = build.model_arguments(config)["model"]["shared"]["dtype"]
    matmul = Matmul(dtype)

    memory = _peak_mib()
    step, state, batch, compile_seconds = compile_step(config)
    parameters = _parameters_by_tower(state.params)  # before the first step takes the state's buffers
    wait_for_turn()
    seconds, in_a_row = time_steps(step, state, batch, steps=steps, matmul=matmul)
    memory = _peak_mib() - memory

    side, peak = matmul.best()
    median = statistics.median(seconds)
    # On an accelerator a step that is waited for tells how long the host took too.
    taken = median if jax.default_backend() == "cpu" else in_a_row
    achieved = training * batch_size / taken
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": host.cores(),
        "dtype": dtype,
        "batch_size": batch_size,
        "parameters": parameters,
        "forward_gflop_per_pair": forward,
        "training_gflop_per_pair": training,
        "trace_seconds": compile_seconds["trace"],
        "compile_seconds": compile_seconds["compile"],
        "steps": steps,
        "step_seconds": {"median": median, "min": min(seconds), "max": max(seconds)},
        "seconds_in_a_row": in_a_row,
        "pairs_per_second": batch_size / taken,
        "gflops": achieved,
        "matmul_side": side,
        "matmul_gflops": peak,
        "matmul_ratio": achieved / (peak * jax.device_count()),
        "host_peak_mib": memory,
        "device_peak_mib": _device_peak_mib(),
    }


def _parameters_by_tower(params: Any) -> dict[str, int]:
    counts = dict.fromkeys(TOWERS, 0)

    def count(path: str, leaf: jax.Array) -> None:
        tower = next(name for name, parts in TOWERS.items() if any(part in f"/{path}/" for part in parts))
        counts[tower] += leaf.size

    map_by_path(count, params)
    return counts


def _peak_mib() -> float:
    """The most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held before it started this process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _device_peak_mib() -> float | None:
    """The most memory held on the first device; None where it does not tell."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / 2**20 if "peak_bytes_in_use" in stats else None


def table(result: dict[str, Any]) -> str:
    """The measurements as aligned lines."""
    parameters, forward = result["parameters"], result["forward_gflop_per_pair"]
    step, device_peak = result["step_seconds"], result["device_peak_mib"]
    total = sum(forward.values())
    rows = [
        ("device", f"{result['devices']} x {result['device']}, {result['cores']} cores, {result['dtype']}"),
        ("batch size", f"{result['batch_size']:,} pairs"),
        ("parameters", f"{sum(parameters.values()):,}"),
        *((f"  {name}", f"{count:,}") for name, count in parameters.items()),
        ("forward", f"{total:.4g} GFLOP/pair"),
        *((f"  {name}", f"{value:<9.4g} {value / total:6.1%}") for name, value in forward.items()),
        ("training", f"{result['training_gflop_per_pair']:.4g} GFLOP/pair (3 x forward)"),
        ("trace", f"{result['trace_seconds']:.1f} s"),
        ("compile", f"{result['compile_seconds']:.1f} s"),
        (
            "step",
            f"{1e3 * step['median']:.1f} ms median, {1e3 * step['min']:.1f} min, {1e3 * step['max']:.1f} max "
            f"of {result['steps']}; {1e3 * result['seconds_in_a_row']:.1f} in a row",
        ),
        ("speed", f"{result['pairs_per_second']:.1f} pairs/s"),
        ("achieved", f"{result['gflops']:.1f} GFLOP/s"),
        ("matmul", f"{result['matmul_gflops']:.1f} GFLOP/s at n = {result['matmul_side']}"),
        ("achieved / matmul", f"{result['matmul_ratio']:.1%}"),
        ("host memory", f"{result['host_peak_mib']:.0f} MiB over the start"),
        ("device memory", "not told by this device" if device_peak is None else f"{device_peak:.0f} MiB"),
    ]
    return "\n".join(f"{name:20}{value}" for name, value in rows)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that `chosen_config` reads."""
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--size", choices=common.WHOLE_SIZES, default=common.WHOLE_SIZES[0], help="of the model")
    model.add_argument("--shape", choices=shapes.SHAPES, help="of the comparison with PyTorch, in place of a size")
    parser.add_argument(
        "--data", choices=data_sets.DATA, default=data_sets.DATA[0], help="whose config values are taken"
    )


def chosen_config(args: argparse.Namespace) -> ConfigDict:
    """The config of the shape or size and the data that were asked for."""
    config = shape_config(args.shape, args.data) if args.shape else _size_config(args)
    run_length.resolve_steps(config, 100_000)  # how long the run would be changes no step's work
    return config


def _size_config(args: argparse.Namespace) -> ConfigDict:
    return pretrain.get_config(f"size={args.size},data={args.data}")


def main() -> int:
    """Reads the flags, measures and prints; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_flags(parser)
    parser.add_argument("--batch-size", type=int, help="pairs a step; the config's by default")
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any config value; repeatable")
    parser.add_argument("--plain-attention", action="store_true", help="never cuDNN's, for comparison")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error("--steps must be 1 or more")
    host.quiet_libraries()
    host.prepare_accelerator()
    config = chosen_config(args)
    if args.plain_attention:
        attention.FEWEST_FUSED_KEYS = sys.maxsize

    def measure() -> dict[str, Any]:
        set_values(config, args.set)
        if args.batch_size is not None:
            config.batch_size = args.batch_size
        return run(config, args.steps)

    return finish(measure, table, as_json=args.json)


if __name__ == "__main__":
    host.use_huge_pages()
    sys.exit(main())
