"""What a training step compiled for an H100 moves through the card's memory, by kind of kernel; no GPU is needed.

    pip install "jax[cuda13]"
    python benchmarks/gpu_program.py --shape torch-base --batch-size 128 --set model.shared.unroll=True

JAX's CUDA plugin compiles for a device that is described to it. Products and fusions are then not tuned by timing, so
the program is one that the card could run, not the very one that it would choose. Bytes are those of operands and
results of every kernel, which overstates slices and in-place updates; loops count once, so unroll the blocks.
"""

import argparse
import collections
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"  # read when jax is imported

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.command import finish
from benchmarks.train_step import add_model_flags, chosen_config, set_values
from maskvlm_jax.models import attention
from maskvlm_jax.plan import flops
from maskvlm_jax.runtime import host, sharding
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import rules as configs
from maskvlm_jax.training import build

# The card as XLA describes it, its rates by NVIDIA's datasheet but for the clock.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 13 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
RATES = (783.0, 3.0)  # TFLOP/s of square products in bfloat16, TB/s of copies, measured on one
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8}
# Part of the model -> its scope in the program, and what `flops.flops_per_pair` calls it.
PARTS = {"image encoder": "image_encoder", "text encoder": "text_encoder", "fusion": "fusion", "optimizer": "optimizer"}
HEADS, UNSAID = "heads and losses", "copies that no scope tells"
FREE = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant")


def described_devices() -> list[Any]:
    """One H100 that is not there.

    Raises:
        UserError: JAX has no plugin for NVIDIA's GPUs.
    """
    from jax.experimental import topologies

    try:
        import jax_plugins.xla_cuda13 as plugin

        plugin.initialize()
    except ImportError as error:
        raise UserError('JAX\'s CUDA plugin is not installed; pip install "jax[cuda13]"') from error
    except Exception as error:  # without a driver it tells so, registered already
        if "already exists" not in str(error) and "cuDNN" not in str(error):
            raise
    return topologies.get_topology_desc("one", platform="cuda", target_config=H100, topology="1x1x1").devices


def compile_step(config: ConfigDict) -> tuple[Any, float]:
    """The compiled step, and the seconds that compiling took."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    devices, like = described_devices(), sharding.make_mesh(**config.mesh)
    mesh = jax.sharding.Mesh(np.array(devices).reshape(like.devices.shape), like.axis_names, axis_types=like.axis_types)
    # What JAX asks of a GPU that is there: the backend's name, the card's generation and cuDNN's release.
    jax.default_backend = lambda: "gpu"
    attention.compute_capability = lambda: 9.0
    cudnn.check_compute_capability, cudnn.check_cudnn_version = lambda _: True, lambda: 91300
    cudnn.is_cuda_compute_capability_equal = lambda _: False
    with jax.set_mesh(mesh):
        built = build.build(config, mesh)
        lowered = built.step.lower(*build.described(config, built, mesh))
        start = time.perf_counter()
        return lowered.compile(), time.perf_counter() - start


def traffic(program: str) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """Kind of kernel -> how many there are, and their bytes; and the bytes of each of `PARTS`."""
    sizes: dict[str, int] = {}
    kinds: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    parts: dict[str, int] = collections.Counter()
    for line in program[program.index("\nENTRY") :].splitlines():
        found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)", line)
        if not found:
            continue
        name, shape, operation, rest = found.groups()
        sizes[name] = _bytes(shape)
        if operation in FREE:
            continue
        target = re.search(r'custom_call_target="([^"]*)"', line)
        kind = re.sub(r"[.\d]+$", "", name) if operation == "fusion" else target[1] if target else operation
        kinds[kind][0] += 1
        operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
        size = sizes[name] + sum(sizes.get(operand, 0) for operand in operands)
        kinds[kind][1] += size
        parts[part_of(line)] += size
    ordered = sorted(kinds.items(), key=lambda item: -item[1][1])
    return {kind: (count, size) for kind, (count, size) in ordered}, dict(parts)


def part_of(instruction: str) -> str:
    """The part of the model that an instruction is of, by the scope that JAX noted."""
    found = re.search(r'op_name="([^"]*)"', instruction)
    if not found:
        return UNSAID
    return next((part for part, scope in PARTS.items() if f"/{scope}/" in f"{found[1]}/"), HEADS)


def _bytes(shape: str) -> int:
    """Of a shape, or of all in a tuple."""
    total = 0
    for dtype, sides in re.findall(r"(\w+)\[([\d,]*)\]", shape):
        total += BYTES.get(dtype, 0) * int(np.prod([int(side) for side in sides.split(",") if side], dtype=np.int64))
    return total


def run(config: ConfigDict, rates: Sequence[float] = RATES) -> dict[str, Any]:
    """All that is read off the program; `rates` are those of the roofline."""
    configs.check(config)
    compiled, seconds = compile_step(config)
    memory, (kinds, parts) = compiled.memory_analysis(), traffic(compiled.as_text())
    pairs = config.batch_size
    counted = {name: 3 * value * pairs / 1e3 for name, value in flops.flops_per_pair(config, pairs).items()}
    encoders = {part: counted.pop(PARTS[part]) for part in ("image encoder", "text encoder")}
    teraflop = {**encoders, "fusion": sum(counted.values())}  # with the heads, a hundredth of it
    return {
        "batch_size": config.batch_size,
        "compile_seconds": seconds,
        "temporary_gib": memory.temp_size_in_bytes / 2**30,
        "arguments_gib": memory.argument_size_in_bytes / 2**30,
        "gflop": flops.train_flops_per_pair(config, config.batch_size) * config.batch_size,
        "gigabytes": sum(size for _, size in kinds.values()) / 1e9,
        "rates": rates,
        "parts": {
            part: {"teraflop": teraflop.get(part, 0.0), "gigabytes": size / 1e9}
            for part, size in sorted(parts.items(), key=lambda item: -item[1])
        },
        "kinds": {kind: {"kernels": count, "gigabytes": size / 1e9} for kind, (count, size) in kinds.items()},
    }


def table(result: dict[str, Any], rows: int = 16) -> str:
    """The largest kinds in Markdown."""
    lines = [
        f"{result['batch_size']} pairs: {result['gflop'] / 1e3:.1f} TFLOP, {result['gigabytes']:.0f} GB; "
        f"{result['temporary_gib']:.1f} GiB of temporaries, {result['arguments_gib']:.1f} of arguments; "
        f"compiled in {result['compile_seconds']:.0f} s",
        "",
        "| kind of kernel | how many | GB |",
        "|---|---|---|",
    ]
    shown = list(result["kinds"].items())[:rows]
    lines += [f"| {kind} | {x['kernels']} | {x['gigabytes']:.1f} |" for kind, x in shown]
    return "\n".join([*lines, "", *roofline(result["parts"], result["rates"])])


def roofline(parts: dict[str, dict[str, float]], rates: Sequence[float] = RATES) -> list[str]:
    """Milliseconds of each part: products at the speed of square ones, bytes at that of a copy, and the larger."""
    lines = ["| part | TFLOP | ms | GB | ms | at least, ms |", "|---|---|---|---|---|---|"]
    least = products = 0.0
    for part, x in parts.items():
        busy, moved = 1e3 * x["teraflop"] / rates[0], x["gigabytes"] / rates[1]
        products, least = products + busy, least + max(busy, moved)
        cells = x["teraflop"], busy, x["gigabytes"], moved, max(busy, moved)
        lines.append(f"| {part} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    lines.append(f"| together | | {products:.1f} | | | {least:.1f}: products are {products / least:.0%} of it |")
    return lines


def main() -> int:
    """Reads the flags, compiles and prints; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_flags(parser)
    parser.add_argument("--batch-size", type=int, help="pairs a step; the config's by default")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any config value; repeatable")
    parser.add_argument(
        "--rates", type=float, nargs=2, default=RATES, metavar=("TFLOPS", "TBS"), help="of products and of memory"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    host.quiet_libraries()
    host.prepare_accelerator()
    # There is nothing to time on.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip()
    config = chosen_config(args)
    config.model.shared.dtype = "bfloat16"

    def measure() -> dict[str, Any]:
        set_values(config, args.set)
        if args.batch_size is not None:
            config.batch_size = args.batch_size
        return run(config, args.rates)

    return finish(measure, table, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
