"""Runs hostile command lines, each in a process of its own that has the imports already; see `test_fuzz.py`.

    python tests/fuzz.py FOLDER SEED COUNT

Prints one JSON object a command line: what it was, its exit status, what it printed, and which files that were there
before it has changed. Nothing is trained: where a command line is right, the run ends where its first step would begin.
A workdir that one command line began is another's to go on with: only one that is refused must leave it as it was.
"""

import hashlib
import json
import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")

from maskvlm_jax import main
from maskvlm_jax.ablate import ablation
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import plain_values
from maskvlm_jax.training import loop, scoring
from tests.conftest import TOY
from tests.forks import run_alone

ODD = ("", " ", "-1", "0", "1", "3", "nan", "inf", "-inf", "1e309", "1e-400", "()", "('',)", "{}", "[]", "None", "True")
ODD += (
    "0.5",
    "'",
    '"',
    "\\",
    "ü",
    "日本",
    "\udcff",
    "../..",
    "a" * 300,
    "%s",
    "{0}",
    "$HOME",
    "~",
    "999999999999999999999",
)
ODD += ("(1,)", "('a','b')", "1,2", "=", "--", "\n", "{'train': 3}", "latest", "best", "auto", "nowhere")
NUMBERS = ("-1", "0", "1", "2", "3", "7", "nan", "inf", "1e309", "1e-400", "0.5", "1000000", "ü", "", "True")
STRUCTURES = ("", ":", ":size=tiny", ":size=huge", ":data=files", ":data=files+files", ":data=", ":size", ":=", ":ü=ü")
STRUCTURES += (
    ":recipe=clip",
    ":recipe=mamo",
    ":data=parquet",
    ":data=webdataset",
    ":data=tfds",
    ":size=tiny,size=mini",
)
FILES = ("configs/pretrain.py", "configs/pretrain.py", "configs/pretrain.py", "configs/evaluate.py")
FILES += ("configs/finetune_retrieval.py", "configs/ablations.py", "configs/prepare.py", "configs/nowhere.py", "")


def data_folders(folder: Path) -> list[str]:
    """Roots with something wrong in each, and one with nothing wrong."""
    import cv2
    import numpy as np

    picture = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    made = []

    def root(name: str, captions: bytes, lists: bytes = b"a.png\n", file: str = "captions.csv") -> Path:
        path = folder / "data" / name
        (path / "images").mkdir(parents=True)
        (path / "images" / "a.png").write_bytes(picture)
        (path / file).write_bytes(captions)
        for split in ("train", "val"):
            (path / f"{split}.txt").write_bytes(lists)
        made.append(str(path))
        return path

    root("good", b"image,caption\na.png,a dog\n")
    root("latin", "image,caption\na.png,schön\n".encode("latin-1"))
    root("empty", b"")
    root("header", b"picture;text\n")
    root("quote", b'image,caption\na.png,"a dog\n')
    root("outside", b"image,caption\n../../a.png,a dog\n")
    root("nul", b"image,caption\na\0.png,a dog\n")
    root("lists", b"image,caption\na.png,a dog\n", b"\xff\xfe")
    root("none listed", b"image,caption\na.png,a dog\n", b"\n")
    root("[brackets]", b"image,caption\na.png,a dog\n")
    root("ünï", b"image,caption\na.png,a dog\n")
    loop = root("loop", b"image,caption\na.png,a dog\n")
    (loop / "images" / "loop").symlink_to(loop / "images")
    directory = root("directory", b"x", file="x")
    (directory / "captions.csv").mkdir()
    (folder / "data" / "a file").write_text("x")
    return [
        *made,
        str(folder / "data" / "a file"),
        str(folder / "data"),
        "/dev/null",
        "/proc/self/mem",
        "gs://b/c",
        "~",
    ]


def command_line(rng: random.Random, folder: Path, roots: list[str], keys: dict[str, object], number: int) -> list[str]:
    """A command line that is wrong somewhere, or not; every fiftieth is right."""
    if number % 50 == 49:
        right = [f"--config.{key}={value}" for key, value in TOY.items()]
        return ["main", "--config=configs/pretrain.py", *right, f"--workdir={folder / 'right' / str(number)}"]
    file = rng.choice(FILES)
    structure = rng.choice(STRUCTURES if rng.random() < 0.3 else ("", ":data=files", ":data=files"))
    structure = structure if "pretrain" in file or rng.random() < 0.3 else ""
    flags = {f"--config.{key}": value for key, value in TOY.items() if file == "configs/pretrain.py"}
    for _ in range(rng.randint(0, 4)):
        key = rng.choice(list(keys))
        numeric = isinstance(keys[key], (int, float)) and rng.random() < 0.8
        if rng.random() < 0.1:
            key = key[: rng.randint(0, len(key))] + rng.choice(("", "x", "ü", "."))
        flags[f"--config.{key}"] = rng.choice(NUMBERS if numeric else ODD)
    if rng.random() < 0.7 and "ablations" not in file:
        flags["--config.data.root"] = rng.choice(roots)
    if rng.random() < (0.8 if "evaluate" in file or "finetune" in file else 0.1) and "prepare" not in file:
        flags["--config.checkpoint"] = rng.choice((*roots, str(folder / "kept"), "nowhere", ""))
    if rng.random() < 0.2:
        flags["--config.data.tokenizer"] = rng.choice((*roots, "bert-base-uncased"))
    workdirs = [folder / "work" / str(number), folder / "kept", folder / "data" / "a file", folder / "w [x]" / "a"]
    workdirs += [folder / ("n" * 300), Path("/dev/null/x"), folder / "data" / "good"]
    flags["--workdir"] = folder / "ü\udcff" if rng.random() < 0.03 else rng.choice(workdirs)
    argv = ["main", f"--config={file}{structure}", *(f"{key}={value}" for key, value in flags.items())]
    if rng.random() < 0.05:
        argv.insert(
            rng.randint(1, len(argv)), rng.choice(("--", "-", "--help=", "x", "--confg=a", "--config", "-w", ""))
        )
    if rng.random() < 0.03:
        del argv[1]
    return argv


def would_run(*_) -> None:
    raise UserError("would run the rows of a grid")


def end_where_training_begins() -> None:
    """In the place of what takes long."""
    ablation.Commands.__call__ = would_run
    loop.Trainer = lambda *_: SimpleNamespace(run=lambda: print("would train"))
    scoring.final_result = lambda *_, **__: {}
    scoring.show = lambda *_: print("would show")


def contents(*folders: Path) -> dict[str, str]:
    """sha256 of every file below folders, but for those that a refused run may write: locks and indices of tars."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    files = (path for path in files if path.name != ".lock" and path.suffix != ".index")
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def fuzz(folder: Path, seed: int, count: int) -> None:
    """Prints the outcome of `count` command lines."""
    from configs import pretrain

    rng = random.Random(seed)
    roots, keys = data_folders(folder), plain_values.flatten(pretrain.get_config().to_dict())
    kept = folder / "kept"
    kept.mkdir()
    (kept / "result.json").write_text("{}")
    (kept / "config.json").write_text('{"format": 1')
    end_where_training_begins()
    os.chdir(Path(__file__).resolve().parent.parent)
    peoples = contents(kept, folder / "data")
    for number in range(count):
        argv = command_line(rng, folder, roots, keys, number)
        out, errors = folder / "out", folder / "errors"
        sys.argv = argv  # config_flags looks there for the flags that it is to define
        before = contents(kept, folder / "data")
        status = run_alone(lambda argv=argv: main.main(argv), out, errors, 120)
        after = contents(kept, folder / "data")
        changed = [path for path in (before if status else peoples) if after.get(path) != before[path]]
        told = {"argv": argv, "status": status, "changed": changed}
        told |= {"out": out.read_text(errors="replace"), "errors": errors.read_text(errors="replace")}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    fuzz(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
