"""The results of `benchmarks/accelerator.sh` as Markdown."""

from collections.abc import Callable, Iterator
from typing import Any


def tables(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The results as Markdown."""
    found = {name: line["result"] for name, line in results.items() if "result" in line}

    def of(kind: str) -> dict[str, Any]:
        return {name.partition("/")[2]: found[name] for name in found if name.startswith(f"{kind}/")}

    steps = of("step")
    yield from _steps(steps)
    yield from _torch(of("torch"), steps)
    yield from _numerics(of("numerics"))
    yield from _short_runs(found, of)
    if x := found.get("tests"):
        yield f"tests: {x['summary']}" + "".join(f"\n  {name}" for name in x["failed"])
    for name, line in results.items():
        if "failed" in line:
            yield f"failed: {name}: {line['failed']}"


def _steps(steps: dict[str, Any]) -> Iterator[str]:
    """Speed and memory of our steps."""
    if steps:
        yield "| step | pairs/s | ms | TFLOP/s | of square products | memory in GiB | compile in s |"
        yield "|---|---|---|---|---|---|---|"
        for name, x in steps.items():
            memory = (x["device_peak_mib"] or 0) / 1024
            yield (
                f"| {name}, {x['dtype']} | {x['pairs_per_second']:,.0f} | {1e3 * x['seconds_in_a_row']:.1f} | "
                f"{x['gflops'] / 1e3:.1f} | {x['matmul_ratio']:.1%} of {x['matmul_gflops'] / 1e3:.0f} | {memory:.1f} | "
                f"{x['compile_seconds']:.0f} |"
            )
        yield ""


def _torch(torch: dict[str, Any], steps: dict[str, Any]) -> Iterator[str]:
    """PyTorch's steps, beside the fastest of ours of the same shape and size."""
    if torch:
        yield "| PyTorch | pairs/s | ms | memory in GiB | ours over it |"
        yield "|---|---|---|---|---|"
        for name, x in torch.items():
            best = max((y["pairs_per_second"] for key, y in steps.items() if key.startswith(name)), default=0.0)
            memory = (x["device_peak_mib"] or 0) / 1024
            yield (
                f"| {name}, torch {x['torch']} | {x['pairs_per_second']:,.0f} | "
                f"{1e3 * x['seconds_in_a_row']:.1f} | {memory:.1f} | {best / x['pairs_per_second']:.2f} |"
            )
        yield ""


def _numerics(found: dict[str, Any]) -> Iterator[str]:
    """Errors of losses and gradients, a column for each precision."""
    numerics = {name: x for name, x in found.items() if "gradients" in x}
    if numerics:
        yield "| error against float32 on a CPU | " + " | ".join(numerics) + " |"
        yield "|---" * (1 + len(numerics)) + "|"
        for title, one in (("losses", "loss"), ("gradients", "gradient"), ("gradient_norms", "its norm")):
            for name in next(iter(numerics.values())).get(title, ()):
                cells = " | ".join(f"{abs(x[title][name]):.4%}" for x in numerics.values())
                yield f"| {one}, {name} | {cells} |"
        yield ""


def _short_runs(found: dict[str, Any], of: Callable[[str], dict[str, Any]]) -> Iterator[str]:
    """Bits, curves and feeding, a line each."""
    for name, x in of("bits").items():
        yield (
            f"bits, {name}: {'equal' if x['equal'] else 'not equal'}; resumed at step {x['resumed_at']}; "
            + ", ".join(f"{run} {sha[:8]}" for run, sha in x["sha256"].items())
        )
    if x := found.get("curves"):
        yield (
            f"curves: {x['steps']} steps, losses at most {x['largest_difference']:.1%} apart; mean recall "
            + ", ".join(f"{name} {value:.1f}" for name, value in x["mean_recall"].items())
        )
    for name, x in of("feed").items():
        for workers, y in x["workers"].items():
            yield (
                f"feed, {name}, {x['cores']} cores, {workers} workers: {y['pairs_per_second']:,.0f} pairs/s, "
                f"data wait {y['data_wait']:.1%}"
            )
