"""What a step takes of each chip as chips grow at a fixed batch a chip: a table and a plot, from compiled programs.

    python benchmarks/scaling.py --out scaling --size base --per-chip 16
    python benchmarks/scaling.py --out scaling-local --size base --per-chip 16 --set objectives.matching.pool=local

Needs libtpu, no TPU; every point is compiled by a process of its own, some minutes each. What is in --out is not
compiled again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = {
    "flops": ("GFLOP", 1e9),
    "moved_bytes": ("GB moved", 1e9),
    "peak_bytes": ("memory, GiB", 2**30),
    "state_bytes": ("state, GiB", 2**30),
}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def points(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The plan of every number of chips, compiled where it is not there yet."""
    args.out.mkdir(parents=True, exist_ok=True)
    found = []
    for chips in args.chips:
        path = args.out / f"{args.generation}-{chips}.json"
        if not path.exists():
            command = [sys.executable, "-m", "maskvlm_jax.plan.planner", "--json", "--notry"]
            command += [f"--config=configs/pretrain.py:size={args.size},data={args.data}"]
            command += [f"--slice={args.generation}-{chips}", f"--config.batch_size={args.per_chip * chips}"]
            command += [f"--config.{value}" for value in args.set]
            process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            path.write_text(process.stdout)
        found.append(json.loads(path.read_text()))
    return found


def table(found: list[dict[str, Any]]) -> str:
    """A Markdown row a number of chips; everything is of one chip and one step."""
    kinds = [kind for kind in KINDS if any(kind in point["collectives"] for point in found)]
    names = [name for name, _ in COLUMNS.values()] + [f"{kind}, MB" for kind in kinds] + ["step at least, ms"]
    lines = ["| chips | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for point in found:
        cells = [f"{point[key] / unit:,.2f}" for key, (_, unit) in COLUMNS.items()]
        cells += [f"{point['collectives'].get(kind, {}).get('bytes', 0) / 1e6:,.0f}" for kind in kinds]
        lines.append(f"| {point['chips']} | " + " | ".join([*cells, f"{1e3 * point['step_seconds']:.2f}"]) + " |")
    return "\n".join(lines)


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """FLOPs, bytes moved, memory and collective bytes of one chip over the number of chips, each over its first."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    chips = [point["chips"] for point in found]
    figure, (ratio, travel) = pyplot.subplots(1, 2, figsize=(9, 3.2))
    for key, (name, _) in COLUMNS.items():
        ratio.plot(chips, [point[key] / found[0][key] for point in found], "o-", label=name.split(",")[0])
    ratio.set_ylabel("of one chip, over that of 1")
    ratio.set_ylim(bottom=0)
    for kind in KINDS:
        sizes = [point["collectives"].get(kind, {}).get("bytes", 0) / 1e6 for point in found]
        if any(sizes):
            travel.plot(chips, sizes, "o-", label=kind)
    travel.set_ylabel("MB of collectives, one chip")
    for axis in (ratio, travel):
        axis.set_xscale("log", base=2)
        axis.set_xticks(chips, list(map(str, chips)))
        axis.set_xlabel("chips")
        axis.grid(color="0.9")
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> int:
    """Reads the flags, compiles, prints the table and writes the plot; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the plans and the plot")
    parser.add_argument("--generation", default="v5e", help="of the TPU")
    parser.add_argument("--chips", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--size", default="base")
    parser.add_argument("--data", default="coco", help="whose config values are taken")
    parser.add_argument("--per-chip", type=int, default=16, help="pairs a chip and step")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any config value; repeatable")
    args = parser.parse_args()
    try:
        found = points(args)
    except subprocess.CalledProcessError as error:
        print(f"error: a plan failed: {' '.join(error.cmd)}", file=sys.stderr)
        return 2
    print(table(found))
    plot(found, args.out / "scaling.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
