"""What a run would need of a TPU slice that one does not have: its real step, compiled for it on a CPU.

See `maskvlm_jax.plan`, the command.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from maskvlm_jax.plan import flops
from maskvlm_jax.plan.hlo import Program
from maskvlm_jax.plan.slices import GIB, Slice
from maskvlm_jax.plan.tpu_compiler import TooLarge, compile_step
from maskvlm_jax.runtime import metrics
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import rules as configs
from maskvlm_jax.settings import run_length


class Plan(NamedTuple):
    """What a step takes of each chip: bytes, FLOPs, seconds by what bounds them; and what it asks of the hosts."""

    slice: str
    chips: int
    hosts: int
    batch_size: int
    accumulate: int
    remat: str
    mesh: dict[str, int]
    state_bytes: float
    temporary_bytes: float
    peak_bytes: float
    memory_bytes: float
    flops: float
    useful_flops: float
    moved_bytes: float
    collectives: dict[str, dict[str, float]]
    network_bytes: float
    largest: list[tuple[int, str]]
    compute_seconds: float
    memory_seconds: float
    link_seconds: float
    network_seconds: float
    compile_seconds: float

    @property
    def seconds(self) -> float:
        """The roofline: a step takes at least as long as what it does most of."""
        return max(self.compute_seconds, self.memory_seconds, self.link_seconds, self.network_seconds)

    def as_json(self, peak: float) -> dict[str, Any]:
        """All values by name."""
        return self._asdict() | {
            "step_seconds": self.seconds,
            "pairs_per_second": self.batch_size / self.seconds,
            "pictures_per_host_second": self.batch_size / self.seconds / self.hosts,
            "mfu": self.useful_flops / self.seconds / peak,
        }


def make_plan(
    config: ConfigDict, where: Slice, options: dict[str, str] | None = None, keep: Path | None = None
) -> Plan:
    """Compiles the step for a slice and reads what it takes; raises as `compile_step`.

    Args:
        options: of the compiler.
        keep: where the compiled program's text goes.
    """
    config = config.copy_and_resolve_references()
    if config.model.shared.dtype == "auto":
        config.model.shared.dtype = "bfloat16"
    clock = time.monotonic()
    compiled = compile_step(config, where, options)
    seconds = time.monotonic() - clock
    total_flops, text = compiled.flops, compiled.executable.as_text()
    if keep:
        keep.write_text(text, encoding="utf-8")
    memory, program = compiled.executable.memory_analysis(), Program(text)
    chips, chip = where.all_chips, where.chip
    collectives, network_bytes = _collectives(program, where)
    link_bytes = sum(kind["wire_bytes"] for kind in collectives.values())
    peak = memory.peak_memory_in_bytes or memory.argument_size_in_bytes + memory.temp_size_in_bytes
    moved = program.moved_bytes()
    return Plan(
        slice=str(where),
        chips=chips,
        hosts=where.hosts,
        batch_size=config.batch_size,
        accumulate=config.optim.accumulate,
        remat=config.model.shared.remat,
        mesh=compiled.mesh,
        state_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=peak,
        memory_bytes=chip.memory,
        flops=total_flops / chips,
        useful_flops=_useful_flops(config, total_flops) / chips,
        moved_bytes=moved,
        collectives=collectives,
        network_bytes=network_bytes,
        largest=program.largest(5),
        compute_seconds=total_flops / chips / chip.flops,
        memory_seconds=moved / chip.memory_rate,
        link_seconds=link_bytes / chip.link_rate,
        network_seconds=network_bytes / chip.network_rate,
        compile_seconds=seconds,
    )


def _collectives(program: Program, where: Slice) -> tuple[dict[str, dict[str, float]], float]:
    """Count, bytes and bytes sent by each chip of every kind of collective; and of these bytes those between slices."""
    collectives: dict[str, dict[str, float]] = {}
    network_bytes = 0.0
    for found in program.collectives():
        if found.groups.shape[1] < 2:
            continue
        kind = collectives.setdefault(found.kind, {"count": 0, "bytes": 0.0, "wire_bytes": 0.0})
        kind["count"] += found.times
        kind["bytes"] += found.times * found.size
        kind["wire_bytes"] += found.wire_bytes
        if len({int(member) // where.chips for member in found.groups[0]}) > 1:
            # Reduced within a slice first, so that each of its chips sends its own part to the other slices.
            network_bytes += found.wire_bytes / min(where.chips, found.groups.shape[1])
    return collectives, network_bytes


# Pictures of training splits, for the length of a run given in epochs: the set itself need not be here.
PICTURES = {"scenes": 100_000, "flickr8k": 6_000, "flickr30k": 29_000, "coco": 113_287, "vg": 100_000}
PICTURES |= {"sbu": 860_000, "cc3m": 2_950_000}


def pictures(config: ConfigDict) -> int | None:
    """About how many a config trains on, by the names of its sets; None where one is not known."""
    named = [part for part in config.name.split("-") if part in PICTURES]
    limits = {name: part.limit for name, part in config.data.mixture.items()}
    limits = limits or {name: config.data.limit for name in named}
    if not limits or not set(limits) <= set(PICTURES):
        return None
    return sum(min(limit or PICTURES[name], PICTURES[name]) for name, limit in limits.items())


def _useful_flops(config: ConfigDict, traced: float) -> float:
    """Without what is computed twice, where it is known, see `plan.flops`."""
    try:
        return 1e9 * config.batch_size * flops.train_flops_per_pair(config, config.batch_size)
    except UserError:
        return traced


def candidates(config: ConfigDict, error: TooLarge, where: Slice) -> list[dict[str, Any]]:
    """Values that may make a config fit, the cheapest first: parameters and optimizer split over the chips,
    rematerialisation, microbatches."""
    order = ("none", "dots", "full")
    more = order[order.index(config.model.shared.remat) + 1 :]
    split, saved = {}, 0.0
    if config.mesh.fsdp == 1:
        fsdp = math.gcd(where.chips // config.mesh.model, 64)
        split, saved = {"mesh.fsdp": fsdp}, error.state * (1 - 1 / fsdp)
    found = [split] if split and error.needed - saved <= error.available else []
    found += [{"model.shared.remat": remat} for remat in more]
    most = {**split, "model.shared.remat": "full"}
    if split:
        found.append(most)
    parts = config.optim.accumulate
    while parts < config.optim.accumulate * error.needed / error.available:
        parts *= 2
    return found + [{**most, "optim.accumulate": parts * times} for times in (1, 2, 4)]


def largest_batch(config: ConfigDict, error: TooLarge, where: Slice) -> int:
    """A batch that should fit as the config is, if temporaries go with the batch."""
    shares = where.all_chips // config.mesh.model * config.optim.accumulate
    return int(config.batch_size * error.available / error.needed) // shares * shares


def report(plan: Plan, where: Slice, config: ConfigDict, price: float) -> str:
    """A plan as aligned lines."""
    summary = plan.as_json(where.chip.flops)
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    decoded = summary["pictures_per_host_second"]
    hours = config.steps * plan.seconds / 3600
    bounds = {
        "matrix products": plan.compute_seconds,
        "memory": plan.memory_seconds,
        "links": plan.link_seconds,
        "network": plan.network_seconds,
    }
    rows = [
        ("slice", f"{where}: {plan.chips} chips, {plan.hosts} hosts"),
        ("run", f"batch {plan.batch_size:,}, accumulate {plan.accumulate}, remat {plan.remat}, mesh {mesh}"),
        ("memory a chip", f"{plan.peak_bytes / GIB:.2f} GiB of {plan.memory_bytes / GIB:.0f}"),
        ("  state and batch", f"{plan.state_bytes / GIB:.2f} GiB"),
        ("  temporaries", f"{plan.temporary_bytes / GIB:.2f} GiB"),
        ("FLOPs a chip", f"{plan.flops / 1e12:.3f} TFLOP a step, {plan.useful_flops / 1e12:.3f} without recomputation"),
        ("bytes moved", f"{plan.moved_bytes / 1e9:.2f} GB a step"),
        *(
            (f"  {kind}", f"{values['count']:,.0f} a step, {values['bytes'] / 1e6:,.1f} MB")
            for kind, values in sorted(plan.collectives.items())
        ),
        ("step", f"{1e3 * plan.seconds:.1f} ms at least, by " + max(bounds, key=bounds.get)),
        *((f"  {name}", f"{1e3 * value:.1f} ms") for name, value in bounds.items() if value),
        ("MFU", f"{summary['mfu']:.0%} at most"),
        ("speed", f"{summary['pairs_per_second']:,.0f} pairs/s; {decoded:,.0f} a host to decode"),
        ("the run", f"{config.steps:,} steps: {hours:,.1f} hours, {hours * plan.chips:,.0f} chip-hours"),
        ("cost", f"${hours * plan.chips * price:,.0f} at ${price:.2f} a chip-hour"),
        *(
            ("largest arrays" if not i else "", f"{size / 2**20:.0f} MiB  {t}")
            for i, (size, t) in enumerate(plan.largest)
        ),
        ("compiled in", metrics.duration(plan.compile_seconds)),
    ]
    return "\n".join(f"{name:20}{value}" for name, value in rows)


def run(
    config: ConfigDict, where: Slice, *, attempts: bool, price: float, as_json: bool, keep: Path | None = None
) -> None:
    """Prints the plan of a config; where it does not fit, what does.

    Raises:
        UserError: nothing that was tried fits; the message has the numbers.
    """
    configs.check(config)
    if keep:  # before minutes of compiling
        there = keep.exists()
        try:
            keep.open("a").close()
            if not there:
                keep.unlink()
        except OSError as error:
            raise UserError(f"{keep} cannot be written ({error.strerror}); choose another --program") from error
    config = config.copy_and_resolve_references()
    run_length.resolve_steps(config, pictures(config))
    try:
        plan = make_plan(config, where, keep=keep)
    except TooLarge as error:
        batch = largest_batch(config, error, where)
        message = f"does not fit: batch_size {config.batch_size:,} on {where} {error}"
        advice = f"--config.batch_size={batch} should fit as it is" if batch else "not even one pair a chip fits"
        if not attempts:
            raise UserError(f"{message}; {advice}") from None
        print(f"{message}; {advice}", file=sys.stderr, flush=True)
        config, plan = _first_that_fits(config, where, error, message, keep)
    if as_json:
        print(json.dumps(plan.as_json(where.chip.flops)))
    else:
        print(report(plan, where, config, price))


def _first_that_fits(
    config: ConfigDict, where: Slice, error: TooLarge, message: str, keep: Path | None
) -> tuple[ConfigDict, Plan]:
    for values in candidates(config, error, where):
        flag = " ".join(f"--config.{name}={value}" for name, value in values.items())
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(values)
        try:
            plan = make_plan(changed, where, keep=keep)
        except TooLarge as again:
            print(f"  {flag}: {again}", file=sys.stderr, flush=True)
        except UserError as impossible:  # microbatches that the batch cannot be cut into
            print(f"  {flag}: {impossible}", file=sys.stderr, flush=True)
        else:
            print(f"  {flag}: fits\n", file=sys.stderr, flush=True)
            return changed, plan
    raise UserError(
        f"{message}, nor with rematerialisation and microbatches; take more chips, or --config.mesh.fsdp"
    ) from None
