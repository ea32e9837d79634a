"""Times the Python API: from the start of a process to its first result, and pictures a second.

    python benchmarks/serving.py runs/NAME
    python benchmarks/serving.py EXPORT --pictures 2000 --height 375 --width 500 --json

Start: a process that imports, loads, encodes one picture and one text; the second of two, as a file system knows the
files by then. Speed: `encode_images` over JPEG files, beside reading them alone, by as many threads as there are cores,
and the forward pass alone, over and over on one batch. Both bounds want all cores, so the whole is below the slower one
even if nothing is lost in between; their harmonic sum is what is left where both must share the cores. Rounds are taken
in turns, and the median counts.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np

from benchmarks.command import finish
from benchmarks.photographs import write_photographs
from maskvlm_jax.runtime import host
from maskvlm_jax.serving import pictures as reading
from maskvlm_jax.serving.model import load

ROUNDS = 3
_FIRST = """
import sys
import numpy as np
import maskvlm_jax
model = maskvlm_jax.load(sys.argv[1])
model.encode_images(np.zeros((8, 8, 3), np.uint8)), model.encode_texts("a picture")
"""


def first_result(folder: str) -> float:
    """Seconds from the start of a process to its first vectors."""
    seconds = []
    for _ in range(2):
        clock = time.perf_counter()
        subprocess.run([sys.executable, "-c", _FIRST, folder], check=True, cwd=Path(__file__).resolve().parent.parent)
        seconds.append(time.perf_counter() - clock)
    return seconds[-1]


def rates(folder: str, files: list[Path], batch_size: int) -> dict[str, float]:
    """Pictures a second of each kind of work."""
    model = load(folder, batch_size=batch_size)
    pixels = np.zeros((batch_size, model.image_size, model.image_size, 3), np.uint8)
    model.encode_images(pixels)  # compiles

    def read() -> None:
        with ThreadPoolExecutor(host.cores()) as pool:
            list(pool.map(lambda path: reading.read(path, model.image_size), files))

    def forward() -> None:
        for _ in range(0, len(files), batch_size):
            model.encode_images(pixels)

    kinds = {"reading": read, "forward": forward, "encode_images": lambda: model.encode_images(files)}
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(ROUNDS):
        for name, work in kinds.items():
            clock = time.perf_counter()
            work()
            found[name].append(len(files) / (time.perf_counter() - clock))
    return {name: statistics.median(values) for name, values in found.items()}


def measure(folder: str, *, pictures: int, height: int, width: int, batch_size: int) -> dict[str, Any]:
    """All measurements by name."""
    with tempfile.TemporaryDirectory() as temporary:
        write_photographs(Path(temporary), pictures, height, width)
        files = sorted(Path(temporary).glob("*.jpg"))
        found = rates(folder, files, batch_size)
    slower = min(found["reading"], found["forward"])
    together = 1 / (1 / found["reading"] + 1 / found["forward"])
    return {
        "device": jax.devices()[0].device_kind,
        "cores": host.cores(),
        "pictures": f"{pictures:,} of {width} x {height}",
        "first_result_seconds": first_result(folder),
        "pictures_per_second": found,
        "of_the_slower": found["encode_images"] / slower,
        "of_both_in_turn": found["encode_images"] / together,
    }


def table(result: dict[str, Any]) -> str:
    """The measurements in lines."""
    lines = [f"{result['pictures']} on {result['device']}, {result['cores']} cores"]
    lines += [f"{name:16}{rate:10,.0f} pictures/s" for name, rate in result["pictures_per_second"].items()]
    lines.append(f"encode_images reaches {result['of_the_slower']:.0%} of the slower of the other two,")
    lines.append(f"{result['of_both_in_turn']:.0%} of one behind the other on all cores")
    lines.append(f"first result {result['first_result_seconds']:.1f} s after the start of the process")
    return "\n".join(lines)


def main() -> int:
    """Reads the flags, measures and prints; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="workdir of a run, or an export")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if min(args.pictures, args.height, args.width, args.batch_size) < 1:
        parser.error("numbers must be 1 or more")
    host.quiet_libraries()
    host.prepare_accelerator()
    options = {"pictures": args.pictures, "height": args.height, "width": args.width, "batch_size": args.batch_size}
    return finish(lambda: measure(args.model, **options), table, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
