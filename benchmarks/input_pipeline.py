"""Pictures a second that the input pipeline prepares, by stage and as the stream that training reads.

    python benchmarks/input_pipeline.py --data scenes
    python benchmarks/input_pipeline.py --data flickr8k --root data/flickr8k
    python benchmarks/input_pipeline.py --data jpeg --pictures 1000 --json
    python benchmarks/input_pipeline.py --data jpeg --jpeg-size 256 341 --torch-python PYTHON

`jpeg` stands for a set of photographs: it draws pictures of their size and reads them with the augmentation of
`flickr8k`; an interpreter that has torch and torchvision reads them too, by `benchmarks/torch_loader.py`. Stages are
timed inside the real `MakeExample`, in one process and one thread. Beside the clock's time there is the processor's
own, which other jobs on the machine do not lengthen: that gives the rate of one core.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from ml_collections import ConfigDict

from benchmarks.command import finish
from benchmarks.photographs import write_photographs
from configs import common, data_sets, pretrain
from maskvlm_jax.data import decoding, examples, masking, training_stream, transforms
from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.data.sources.base import Source
from maskvlm_jax.data.sources.opening import open_source
from maskvlm_jax.data.sources.training_set import Limited
from maskvlm_jax.data.tokenizer import Tokenizer
from maskvlm_jax.runtime import host
from maskvlm_jax.runtime.errors import UserError

BATCHES = 32  # at least, in which a stream delivers the pictures
ENDLESS = 1_000_000_000  # batches; the stream is closed before


class Seconds(NamedTuple):
    """By the clock, and of this process's processor time."""

    clock: float
    cpu: float


class Stopwatch:
    """Adds up the time spent in calls, by stage."""

    def __init__(self):
        self._clock, self._cpu = defaultdict(float), defaultdict(float)

    def timed(self, stage: str, function: Callable) -> Callable:
        """`function`, with its calls timed."""

        def call(*args: Any, **kwargs: Any) -> Any:
            clock, cpu = time.perf_counter(), time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self._cpu[stage] += time.process_time() - cpu
                self._clock[stage] += time.perf_counter() - clock

        return call

    def seconds(self) -> dict[str, Seconds]:
        return {stage: Seconds(self._clock[stage], self._cpu[stage]) for stage in self._clock}


class TimedSource:
    """A source whose examples are timed: reading a file's bytes, or drawing."""

    def __init__(self, source: Source, stopwatch: Stopwatch, stage: str):
        self._source, self._get = source, stopwatch.timed(stage, source.__getitem__)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._get(index)


def time_stages(config: ConfigDict, source: Source, tokenizer: Tokenizer, pictures: int) -> dict[str, Seconds]:
    """Seconds of each stage over the first pictures, in the order of the pipeline."""
    stopwatch, files = Stopwatch(), config.data.source == "files"
    parts = [
        *([(decoding, "decode", "decode")] if files else []),
        (transforms, "resize", "resize"),
        (training_stream, "rand_augment", "RandAugment"),
        (tokenizer, "encode", "tokenise"),
        *((masking, name, "masks") for name in ("sample_image_mask", "sample_text_mask", "corrupt_tokens")),
    ]
    example = examples.make_example(config, TimedSource(source, stopwatch, "read" if files else "draw"), tokenizer)
    with contextlib.ExitStack() as stack:
        for owner, name, stage in parts:
            timed = stopwatch.timed(stage, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, timed))
        for i in range(pictures):
            example.random_map(i, np.random.default_rng(i))
    seconds = stopwatch.seconds()
    order = ["read", "draw", *dict.fromkeys(stage for _, _, stage in parts)]
    return {stage: seconds[stage] for stage in order if stage in seconds}


def time_examples(config: ConfigDict, source: Source, tokenizer: Tokenizer, pictures: int) -> Seconds:
    """Seconds of whole examples, without the overhead of timing their stages."""
    example = examples.make_example(config, source, tokenizer)
    clock, cpu = time.perf_counter(), time.process_time()
    for i in range(pictures):
        example.random_map(i, np.random.default_rng(i))
    return Seconds(time.perf_counter() - clock, time.process_time() - cpu)


@contextlib.contextmanager
def started_stream(
    config: ConfigDict, source: Source, tokenizer: Tokenizer, pictures: int, *, threads: int, workers: int
) -> Iterator[Iterator]:
    """The stream of batches that training reads, once every worker has delivered."""
    stream = training_stream.train_stream(
        Limited(source, pictures),
        examples.make_example(config, source, tokenizer),
        batch_size=config.batch_size,
        seed=config.seed,
        start=0,
        stop=ENDLESS,
        threads=threads,
        workers=workers,
    )
    try:
        for _ in range(1 + workers):
            next(stream)
        yield stream
    finally:
        stream.close()


def time_batches(stream: Iterator, batches: int) -> Seconds:
    clock, cpu = time.perf_counter(), time.process_time()
    for _ in range(batches):
        next(stream)
    return Seconds(time.perf_counter() - clock, time.process_time() - cpu)


def make_config(args: argparse.Namespace, folder: Path) -> ConfigDict:
    """The config of a run on the chosen data; writes the pictures of `jpeg` into the folder.

    Raises:
        UserError: data on disk without a root.
    """
    config = pretrain.get_config(f"size={args.size},data={'flickr8k' if args.data == 'jpeg' else args.data}")
    if args.data == "jpeg":
        write_photographs(folder, args.pictures, *args.jpeg_size)
        config.data.update(root=str(folder), images="", captions="captions.csv")
        config.data.splits = ConfigDict()
    elif args.root:
        config.data.root = args.root
    elif args.data != "scenes":
        raise UserError(f"--data {args.data} needs --root FOLDER")
    return config


def train_tokenizer(config: ConfigDict, source: Source, pictures: int, folder: Path) -> Tokenizer:
    """A WordPiece tokenizer of the captions, as training makes it."""
    captions = (caption for i in range(pictures) for caption in source.captions(i))
    tokenizers.save(tokenizers.train_wordpiece(captions, config.model.text.vocab_size), folder)
    return tokenizers.load(folder)


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds a picture of every stage and every stream."""
    config = make_config(args, folder)
    source = open_source(config.data.to_dict(), config.data.split, config.model.image.image_size)
    pictures = min(args.pictures, len(source))
    # Many batches, so that the few that were prepared ahead when the clock starts count for little.
    config.batch_size = max(1, min(config.batch_size, pictures // BATCHES))
    tokenizer = train_tokenizer(config, source, pictures, folder / "tokenizer")
    data = config, source, tokenizer, pictures

    passes = [time_stages(*data) | {"whole example": time_examples(*data)} for _ in range(args.repeats)]
    stages = {stage: _median([seconds[stage] for seconds in passes], pictures) for stage in passes[0]}
    streams = []
    batches = pictures // config.batch_size
    for workers in args.workers:
        for threads in args.threads:
            with started_stream(*data, threads=threads, workers=workers) as stream:
                repeats = [time_batches(stream, batches) for _ in range(args.repeats)]
            rates = _median(repeats, batches * config.batch_size)
            # The processor time of other processes is not told before they end.
            rates |= {"per_core": None, "cpu_us": None} if workers else {}
            streams.append({"workers": workers, "threads": threads, **rates})
    return {
        "data": args.data,
        "pictures": pictures,
        "image_size": config.model.image.image_size,
        "batch_size": config.batch_size,
        "repeats": args.repeats,
        "stages": stages,
        "streams": streams,
        "torch": [_run_torch(args, config, folder) for _ in range(args.repeats)] if args.torch_python else [],
    }


def _run_torch(args: argparse.Namespace, config: ConfigDict, folder: Path) -> dict[str, Any]:
    """What `torch_loader.py` prints about the same pictures, read by another interpreter."""
    image, workers = config.model.image, map(str, args.workers)
    shape = {
        "size": image.image_size,
        "patch": image.patch,
        "cell": config.masking.image_cell,
        "length": config.model.text.max_length,
        "batch-size": config.batch_size,
    }
    script = Path(__file__).with_name("torch_loader.py")
    command = [args.torch_python, script, folder, folder / "tokenizer" / "tokenizer.json", "--workers", *workers]
    command += [f"--{name}={value}" for name, value in shape.items()]
    process = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if process.returncode:
        raise UserError(f"--torch-python {args.torch_python} failed: {process.stderr.strip().splitlines()[-1]}")
    return json.loads(process.stdout.splitlines()[-1])


def _median(repeats: list[Seconds], pictures: int) -> dict[str, float | None]:
    """Pictures a second and microseconds a picture, by the clock and of one core."""
    clock = statistics.median(seconds.clock for seconds in repeats)
    cpu = statistics.median(seconds.cpu for seconds in repeats)
    return {"per_second": pictures / clock, "per_core": pictures / cpu, "cpu_us": 1e6 * cpu / pictures}


def table(result: dict[str, Any]) -> str:
    """The rates as aligned lines."""
    streams = {f"stream, {row['workers']} workers, {row['threads']} threads": row for row in result["streams"]}
    lines = [
        f"{result['data']}: {result['pictures']} pictures, {result['image_size']} px, batches of "
        f"{result['batch_size']}, median of {result['repeats']}",
        f"{'':32}{'pictures/s':>12}{'per core':>12}{'us/picture':>12}",
    ]
    for name, row in {**result["stages"], **streams}.items():
        values = (row["per_second"], row["per_core"], row["cpu_us"])
        lines.append(f"{name:32}" + "".join("           -" if v is None else f"{v:12,.0f}" for v in values))
    for workers in result["torch"][0]["rates"] if result["torch"] else ():
        rates = [run["rates"][workers] for run in result["torch"]]
        values = [
            None if rates[0][key] is None else statistics.median(rate[key] for rate in rates)
            for key in ("per_second", "per_core")
        ]
        shown = "".join("           -" if v is None else f"{v:12,.0f}" for v in values)
        lines.append(f"{f'torch DataLoader, {workers} workers':32}" + shown)
    return "\n".join(lines)


def main() -> int:
    """Reads the flags, measures and prints; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=(*data_sets.DATA, "jpeg"), default=data_sets.DATA[0])
    parser.add_argument("--root", default="", help="folder of the data, where it is on disk")
    parser.add_argument("--size", choices=common.WHOLE_SIZES, help="of the model: tiny for scenes, else base (224 px)")
    parser.add_argument("--pictures", type=int, default=2000, help="that are read at most")
    parser.add_argument("--repeats", type=int, default=3, help="of every measurement; the median is told")
    parser.add_argument("--threads", type=int, nargs="+", default=[0, 1, 2], help="of the stream")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="processes of the stream")
    parser.add_argument("--jpeg-size", type=int, nargs=2, default=(375, 500), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--torch-python", default="", help="an interpreter with torch and torchvision; of jpeg alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    args.size = args.size or ("tiny" if args.data == "scenes" else "base")
    if min(args.pictures, args.repeats) < 1:
        parser.error("--pictures and --repeats must be 1 or more")
    if args.torch_python and args.data != "jpeg":
        parser.error("--torch-python reads the pictures of --data jpeg alone")
    host.quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        return finish(lambda: run(args, Path(folder)), table, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
