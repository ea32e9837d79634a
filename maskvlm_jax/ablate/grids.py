"""Tables and plots of a grid of runs."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

Scores = dict[str, dict[int, Mapping[str, float]]]  # row -> seed -> metric -> value


def columns(config: ConfigDict, scores: Scores) -> list[str]:
    """The metrics that are shown: those asked for that some run has, then the same behind fine-tuning."""
    there = {name for seeds in scores.values() for values in seeds.values() for name in values}
    return [name for prefix in ("", "ft_") for name in (prefix + metric for metric in config.metrics) if name in there]


def summary(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds (of a sample; nan where there is one)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def write_tables(config: ConfigDict, scores: Scores, folder: Path) -> None:
    """table.csv, a line a run; table.md, a line a row, mean ± standard deviation over seeds; plot.png."""
    names = columns(config, scores)
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "seed", *names])
        for row, seeds in scores.items():
            writer.writerows([row, seed, *(values.get(name, "") for name in names)] for seed, values in seeds.items())
    lines = ["| row | seeds | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for row, seeds in scores.items():
        cells = [_cell([values[name] for values in seeds.values() if name in values]) for name in names]
        lines.append(f"| {row} | {len(seeds)} | " + " | ".join(cells) + " |")
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plot(config, scores, folder / "plot.png")


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean, deviation = summary(values)
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ± {deviation:.1f}"


def plot(config: ConfigDict, scores: Scores, path: Path) -> None:
    """Points of the plotted metrics by row: each seed, and the mean with its standard deviation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in columns(config, scores) if name.removeprefix("ft_") in config.plotted]
    if not names:
        return
    figure, axes = pyplot.subplots(
        1, len(names), figsize=(1.5 + 3.5 * len(names), 1.2 + 0.4 * len(scores)), sharey=True, squeeze=False
    )
    for axis, name in zip(axes[0], names, strict=True):
        for place, seeds in enumerate(scores.values()):
            values = [found[name] for found in seeds.values() if name in found]
            if values:
                mean, deviation = summary(values)
                axis.plot(values, [place] * len(values), ".", color="0.7")
                axis.errorbar(mean, place, xerr=np.nan_to_num(deviation), fmt="o", color="C0", capsize=3)
        axis.set_xlabel(name.replace("_", " "))
        axis.grid(axis="x", color="0.9")
    axes[0][0].set_yticks(range(len(scores)), list(scores))
    axes[0][0].set_ylim(len(scores) - 0.5, -0.5)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
