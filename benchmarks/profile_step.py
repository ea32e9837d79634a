"""Where the time of a training step goes on a CPU or an NVIDIA GPU, by kind of operation.

    python benchmarks/profile_step.py --shape torch-tiny
    python benchmarks/profile_step.py --shape torch-small --set model.shared.unroll=True
    python benchmarks/profile_step.py --shape torch-base --set batch_size=128 --set model.shared.dtype=bfloat16

Steps run under JAX's profiler. On a CPU it tells for every thread when each kernel of the compiled program was on it,
and a kernel's kind is read from the program. Threads that help with a product are not told: what no kernel accounts for
of all cores' time is theirs, or waiting. On a GPU it tells when each kernel ran, and the kind is read from its name;
what is left of the step is time in which the card had nothing to do.
"""

import argparse
import collections
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
from ml_collections import ConfigDict

from benchmarks import train_step
from benchmarks.command import finish
from maskvlm_jax.runtime import host
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import rules as configs

PRODUCTS, REST = "matrix products", "other threads of products, and waiting"
# (kind, what marks it in a kernel's own operations, or in the name that JAX gave it); the first that fits.
KINDS = (
    (PRODUCTS, r" dot\(", None),
    ("GELU", r" erf\(", None),
    ("gathers and scatters", r" (gather|scatter)\(", None),
    ("transposes", r" transpose\(", r"/transpose$"),
    ("sums over rows and along them", r" reduce\(", r"/reduce_"),
)
OTHER = "other element-wise work and copies"
# The same of a GPU, whose kernels have the names of libraries and of XLA's fusions.
GPU_KINDS = (
    ("attention by cuDNN", r"sdpa|fmha|flash|mha_"),
    (PRODUCTS, r"gemm|nvjet|cutlass|xmma|gemv|splitk|cublas"),
    ("transposes", r"transpose"),
    ("gathers and scatters", r"gather|scatter"),
    ("fusions that end in sums: norms, softmax, gradients of biases", r"reduce"),
    ("copies", r"memcpy|memset|copy|pad|slice|concatenate"),
)
IDLE = "nothing on the card"


def kinds(program: str) -> dict[str, str]:
    """The kind of every kernel of a compiled program, by its name there."""
    bodies: dict[str, list[str]] = {}
    lines: dict[str, str] = {}
    for line in program.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            body = bodies.setdefault(head[1], [])
        elif instruction := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line):
            body.append(line)
            lines[instruction[1]] = line
    return {name: _kind(line, bodies) for name, line in lines.items()}


def _kind(line: str, bodies: Mapping[str, list[str]]) -> str:
    called, named = re.search(r"calls=%?([\w.\-]+)", line), re.search(r'op_name="([^"]*)"', line)
    operations = "\n".join([line.partition(", metadata=")[0], *(bodies[called[1]] if called else [])])
    for kind, operation, name in KINDS:
        if re.search(operation, operations) or (name and named and re.search(name, named[1])):
            return kind
    return OTHER


def own_times(events: Iterable[tuple[float, float, str]]) -> collections.Counter:
    """Seconds of each name on one thread, without what runs inside of it; events are (start, duration, name)."""
    times, open_events = collections.Counter(), []
    for start, duration, name in sorted(events, key=lambda event: (event[0], -event[1])):
        while open_events and open_events[-1][0] <= start:
            open_events.pop()
        if open_events:
            times[open_events[-1][1]] -= duration
        times[name] += duration
        open_events.append((start + duration, name))
    return times


def traced(folder: Path) -> collections.Counter:
    """Seconds of each kernel over all of XLA's threads."""
    (path,) = folder.rglob("*.xplane.pb")
    total = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            if line.name.startswith("tf_XLA"):
                total += own_times((event.start_ns / 1e9, event.duration_ns / 1e9, event.name) for event in line.events)
    return total


def traced_gpu(folder: Path) -> collections.Counter:
    """Seconds of each kernel on the first GPU, by its name; `IDLE` is what no kernel ran of the time between."""
    (path,) = folder.rglob("*.xplane.pb")
    plane = next(
        plane for plane in jax.profiler.ProfileData.from_file(str(path)).planes if plane.name.startswith("/device:GPU")
    )
    streams = [line for line in plane.lines if line.name.startswith("Stream")]
    events = sorted((event.start_ns, event.duration_ns, event.name) for line in streams for event in line.events)
    total, ended = collections.Counter(), events[0][0]
    for start, duration, name in events:
        total[name] += duration / 1e9
        total[IDLE] += max(0, start - ended) / 1e9
        ended = max(ended, start + duration)
    return total


def gpu_kind(name: str) -> str:
    """The kind of a kernel of this name."""
    if name == IDLE:
        return IDLE
    return next((kind for kind, pattern in GPU_KINDS if re.search(pattern, name, re.IGNORECASE)), OTHER)


def run(config: ConfigDict, steps: int) -> dict[str, Any]:
    """Milliseconds of a step by kind: of all cores together, or of the GPU.

    Raises:
        UserError: another device, whose profile has other lines; or values that do not fit together.
    """
    configs.check(config)
    backend = jax.default_backend()
    if backend not in ("cpu", "gpu"):
        raise UserError("this profile is of a CPU or a GPU; on other devices open jax.profiler.trace with XProf")
    step, state, batch, _ = train_step.compile_step(config)
    of_kernel = kinds(step.as_text())
    for _ in range(2):
        state, _ = jax.block_until_ready(step(state, batch))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            start = time.perf_counter()
            for _ in range(steps):
                state, _ = jax.block_until_ready(step(state, batch))
            seconds = (time.perf_counter() - start) / steps
        kernels = traced(Path(folder)) if backend == "cpu" else traced_gpu(Path(folder))
    by_kind = collections.Counter()
    for name, spent in kernels.items():
        kind = of_kernel.get(name) if backend == "cpu" else gpu_kind(name)
        if kind:
            by_kind[kind] += spent / steps
    cores = host.cores() if backend == "cpu" else 1
    by_kind[REST if backend == "cpu" else IDLE] += cores * seconds - sum(by_kind.values())
    return {
        "cores": cores,
        "device": jax.devices()[0].device_kind,
        "step_milliseconds": 1e3 * seconds,
        "core_milliseconds": {kind: 1e3 * value for kind, value in by_kind.most_common()},
        "kernels": [[name, 1e3 * spent / steps] for name, spent in kernels.most_common(40)],
    }


def table(result: dict[str, Any]) -> str:
    """The measurements as a table in Markdown."""
    total = sum(result["core_milliseconds"].values())
    where = f"{result['cores']} cores | core-ms" if result["device"] == "cpu" else f"{result['device']} | ms"
    head = f"| {result['step_milliseconds']:,.0f} ms a step, {where} | |"
    rows = [f"| {kind} | {value:,.1f} | {value / total:.1%} |" for kind, value in result["core_milliseconds"].items()]
    return "\n".join([head, "|---|---|---|", *rows])


def main() -> int:
    """Reads the flags, measures and prints; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    train_step.add_model_flags(parser)
    parser.add_argument("--steps", type=int, default=3, help="steps that are profiled")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any config value; repeatable")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error("--steps must be 1 or more")
    host.quiet_libraries()
    host.prepare_accelerator()
    config = train_step.chosen_config(args)

    def measure() -> dict[str, Any]:
        train_step.set_values(config, args.set)
        return run(config, args.steps)

    return finish(measure, table, as_json=args.json)


if __name__ == "__main__":
    host.use_huge_pages()
    sys.exit(main())
