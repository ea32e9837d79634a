"""Workdirs that an older release left, and what becomes of them under this one.

    python -m tests.frozen.runs make FOLDER [RECIPE ...]     as this release writes them, for the tests of later ones
    python -m tests.frozen.runs again ARCHIVE                what becomes of one, as JSON

RECIPE.tar.xz is the workdir of a toy run that stopped half way. RECIPE.json says what that run went on to, what the
workdir scored, and what fine-tuning made of it: `losses` by step, `metrics`, the examples that were read
(`stream`), and `parameters_sha256`.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

RECIPES = ("maskvlm", "mlim", "mamo", "albef", "clip", "m3ae")
STEPS, STOP = 4, 2
# One CPU device, and programs that are quick to compile: bits depend on both.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "1",
    "XLA_FLAGS": "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true",
}
# Every part is there, each as small as it can be.
VALUES = {
    "steps": STEPS,
    "batch_size": 8,
    "log_every": 1,
    "eval_every": 2,
    "checkpoint_every": 2,
    "data.tokenizer_captions": 40,
    "data.workers": 0,
    "model.image.image_size": 32,
    "model.image.patch": 8,
    "model.text.max_length": 12,
    "model.text.vocab_size": 96,
    "masking.image_cell": 1,
    "optim.warmup_steps": 1,
    "evaluation.limit": 8,
    "evaluation.extra_splits": (),
    "evaluation.batch_size": 8,
    "evaluation.rerank_k": 4,
    "evaluation.figures": 0,
}
SMALL = {"width": 8, "heads": 2, "mlp_ratio": 1}
RECIPE_VALUES = {
    "maskvlm": {f"objectives.masked_image.decoder.{name}": value for name, value in SMALL.items()},
    "mlim": {"model.image.channels": 2, "objectives.masked_image.channels": 2},
    "m3ae": {"objectives.masked_image.decoder.width": 8},
    "albef": {"objectives.contrastive.queue": 16},
}


def values_of(recipe: str) -> dict[str, Any]:
    """The toy values of a recipe."""
    parts = ("image", "text") if recipe == "clip" else ("image", "text", "fusion")
    values = VALUES | {f"model.{part}.{name}": value for part in parts for name, value in SMALL.items()}
    deep = ("fusion",) if recipe in ("mlim", "m3ae") else parts
    values |= {f"model.{part}.depth": 1 for part in deep}
    if recipe not in ("mlim", "m3ae"):
        values["model.embed"] = 4
    return values | RECIPE_VALUES.get(recipe, {})


def config_of(file: Any, recipe: str, **changes: Any) -> Any:
    """The toy config that a config file makes of a recipe."""
    from maskvlm_jax.settings.plain_values import flatten

    config = file.get_config(f"recipe={recipe}")
    there = flatten(config.to_dict())
    config.update_from_flattened_dict({key: value for key, value in values_of(recipe).items() if key in there})
    config.update(changes)
    return config


def result(folder: Path) -> dict[str, Any]:
    """What a finished run or evaluation says that code must not change."""
    found = json.loads((folder / "result.json").read_text())
    told = {name: found["protocol"][name] for name in ("parameters_sha256", "stream")} | {"metrics": found["metrics"]}
    if (folder / "metrics.jsonl").exists():
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        told["losses"] = {str(line["step"]): line["loss"] for line in lines if line["split"] == "train"}
    return told


def become(recipe: str, frozen: Path, folder: Path) -> dict[str, Any]:
    """What becomes of a workdir that stopped half way: scored, fine-tuned and, in place, finished."""
    from configs import evaluate, finetune_retrieval, pretrain
    from maskvlm_jax.training import loop, scoring

    config = evaluate.get_config()
    config.checkpoint = str(frozen)
    scoring.run(config, folder / "scored")
    loop.run(config_of(finetune_retrieval, recipe, checkpoint=str(frozen)), folder / "tuned")
    loop.run(config_of(pretrain, recipe), frozen)
    return {"straight": result(frozen), "scored": result(folder / "scored"), "tuned": result(folder / "tuned")}


def machine() -> dict[str, str]:
    """What the bits of a run depend on besides the code: where it differs, numbers agree to rounding only."""
    import jax

    words = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").exists() else set()
    vectors = sorted(word for word in words if re.fullmatch(r"avx\w*|fma\w*|amx\w*|asimd\w*|sve\w*", word))
    return {"jax": jax.__version__, "vectors": " ".join(vectors), "machine": platform.machine()}


def make(recipe: str, folder: Path) -> None:
    """Writes RECIPE.tar.xz and RECIPE.json."""
    from configs import pretrain
    from maskvlm_jax.training import loop

    with tempfile.TemporaryDirectory() as temporary:
        straight, frozen = Path(temporary) / "straight", Path(temporary) / recipe
        loop.run(config_of(pretrain, recipe), straight)
        for name in ("config.json", "tokenizer", f"checkpoints/{STOP}"):
            target = frozen / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (straight / name).is_dir() else shutil.copy)(straight / name, target)
        lines = (straight / "metrics.jsonl").read_text().splitlines(keepends=True)
        (frozen / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= STOP))
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(folder / f"{recipe}.tar.xz", "w:xz") as tar:
            tar.add(frozen, recipe)
        expected = {"made_on": machine(), **become(recipe, frozen, Path(temporary))}
        expected["straight"] = result(straight)
        (folder / f"{recipe}.json").write_text(json.dumps(expected, indent=1) + "\n")


def again(archive: Path) -> None:
    """Prints what becomes of a frozen workdir, and on which kind of machine."""
    recipe = archive.name.removesuffix(".tar.xz")
    with tempfile.TemporaryDirectory() as temporary:
        with tarfile.open(archive) as tar:
            tar.extractall(temporary, filter="data")
        print(json.dumps({"made_on": machine(), **become(recipe, Path(temporary) / recipe, Path(temporary))}))


def apart(*arguments: str) -> str:
    """This program in a process of its own; returns what it printed.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command, root = [sys.executable, "-m", "tests.frozen.runs", *arguments], Path(__file__).parents[2]
    options = {"env": os.environ | ENVIRONMENT, "cwd": root, "stdout": subprocess.PIPE, "text": True}
    return subprocess.run(command, check=True, **options).stdout


if __name__ == "__main__":
    kind, where, *recipes = sys.argv[1:]
    if kind == "again":
        again(Path(where))
    elif recipes[:1] == ["--here"]:
        make(recipes[1], Path(where))
    else:
        for one in recipes or RECIPES:
            apart("make", str(Path(where).absolute()), "--here", one)
