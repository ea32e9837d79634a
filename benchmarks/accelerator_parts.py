"""The parts of `benchmarks/accelerator.sh`: which commands there are, at full and at toy size."""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import NamedTuple

PYTHON = sys.executable
TOY = {
    "batch_size": 8,
    "model.image.image_size": 32,
    "model.image.patch": 8,
    "masking.image_cell": 2,
    **{
        f"model.{part}.{key}": value
        for part in ("image", "text", "fusion")
        for key, value in (("width", 32), ("heads", 2))
    },
    **{f"model.{part}.depth": 1 for part in ("image", "text", "fusion")},
    "model.shared.unroll": False,
    "model.embed": 16,
    "objectives.masked_image.decoder.width": 32,
    "objectives.masked_image.decoder.heads": 2,
}
# The rehearsal's runs of the trainer: one loss and two encoders, which start in half the time of the main recipe. What
# these parts look at, bits, curves and waiting, has the same form for every recipe.
TOY_RECIPE = "recipe=clip"
TOY_RUN = {
    **{key: value for key, value in TOY.items() if not key.startswith(("model.fusion", "masking", "objectives"))},
    "data.tokenizer_captions": 200,
}


class Part(NamedTuple):
    """One command; `limit` in seconds, `environment` on top of this process's own."""

    name: str
    command: list[str]
    limit: int
    environment: dict[str, str] = {}  # noqa: RUF012
    in_turns: bool = False  # whether it waits for its turn before it takes its time


def script(name: str, *flags: object) -> list[str]:
    """A benchmark of this folder."""
    return [PYTHON, f"benchmarks/{name}.py", *map(str, flags)]


def _feeds(args: argparse.Namespace, small: str, toy_flag: list[str]) -> list[Part]:
    """Runs that read photographs, where there are some."""
    if not args.photographs:
        return []
    dry = args.dry
    feeds = []
    for structure in [f"{small},data=array_record", "size=small,data=array_record"][: 1 if dry else 2]:
        flags = ["--flag", f"data.root={args.photographs}", "--workers", *([0] if dry else [0, 14])]
        flags += toy_flag if dry else ["--flag", "batch_size=256"]
        run = script("short_runs", "feed", "--structure", structure, "--steps", 8 if dry else 80, *flags, "--json")
        feeds.append(Part(f"feed/{structure}", run, 150))
    return feeds


def _numerics(golden: Path, sizes: list[object]) -> list[Part]:
    """A CPU's numbers, and three kinds of a card's held against them."""
    write = script("numerics", "--write", golden, *sizes, "--json")
    found = [Part("numerics/reference", write, 150, {"JAX_PLATFORMS": "cpu"})]
    for dtype, precision in (("float32", "highest"), ("float32", "default"), ("bfloat16", "default")):
        flags = ["--dtype", dtype, "--precision", precision, "--json"]
        command = script("numerics", "--against", golden, *sizes, *flags)
        found.append(Part(f"numerics/{dtype},{precision}", command, 150))
    return found


def parts(args: argparse.Namespace) -> list[list[Part]]:
    """All parts in the order they are run in; those of one list side by side."""
    dry, out = args.dry, Path(args.out)
    shape = "torch-tiny" if dry else "torch-base"
    steps = ["--steps", 2 if dry else 10, "--json"]
    size = 4 if dry else 128
    toy_set, toy_flag = (
        [word for key, value in values.items() for word in (flag, f"{key}={value}")] if dry else []
        for flag, values in (("--set", TOY), ("--flag", TOY_RUN))
    )

    def step(name: str, *flags: object) -> Part:
        return Part(f"step/{name}", script("train_step", *flags, *steps), 400, in_turns=True)

    def ours(size: int, **values: object) -> Part:
        settings = [text for key, value in values.items() for text in ("--set", f"model.shared.{key}={value}")]
        name = ",".join([shape, str(size), *(f"{key}={value}" for key, value in values.items())])
        model = ["--size", "tiny", *toy_set] if dry else ["--shape", shape, "--batch-size", size]
        return step(name, *model, *settings)

    def torch(size: int) -> Part:
        flags = ["--shape", shape, "--batch-size", size, "--steps", 2 if dry else 10, "--dtype", "bfloat16"]
        flags += [] if dry else ["--device", "cuda", "--compile", "blocks"]
        return Part(f"torch/{shape},{size}", script("torch_step", *flags), 400, in_turns=True)

    sizes = ["--size", "tiny", *toy_set] if dry else ["--size", "mini", "--set", "batch_size=32"]
    reference, *compared = _numerics((out / "golden.npz").absolute(), sizes)
    small = f"size=tiny,{TOY_RECIPE}" if dry else "size=mini"
    brief = ["--structure", f"{small},data=scenes", "--json", *toy_flag]
    kill = ["--steps", 40, "--kill-at", 5] if dry else ["--steps", 200, "--kill-at", 25]
    untimed = [
        *compared,
        Part("bits/as it is", script("short_runs", "bits", *kill, *brief), 240),
        Part("bits/deterministic", script("short_runs", "bits", *kill, *brief, "--flag", "deterministic=True"), 240),
        Part("curves", script("short_runs", "curves", "--steps", 6 if dry else 300, *brief), 240),
    ]
    tests = ["tests/models/test_primitives.py", *([] if dry else ["tests/models", "tests/objectives"])]
    # Whatever device there is; tolerances are those of float32 in full.
    on_device = {"JAX_PLATFORMS": "", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    untimed.append(Part("tests", [PYTHON, "benchmarks/accelerator.py", str(out), "--tests", *tests], 240, on_device))

    feeds = _feeds(args, small, toy_flag)
    beside = [torch(size)] if importlib.util.find_spec("torch") else []  # first: it holds the most memory
    timed = [*beside, ours(size, unroll=True)]
    if dry:  # few cores: what needs nothing of another part fills them
        return [timed, [*feeds, reference], untimed]
    timed += [ours(256, unroll=True), ours(size)]
    timed += [step(f"{name},1024", "--size", name, "--batch-size", 1024) for name in ("mini", "small")]
    plain = step(f"{shape},{size},plain attention", "--shape", shape, "--batch-size", size, "--plain-attention")
    return [timed, *([part] for part in feeds), [reference], untimed, [plain, ours(512, remat="dots")]]
