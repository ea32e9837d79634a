"""The fingerprint of a stream is the same however its rows are shared and however often the run was stopped."""

import json
import subprocess
import sys

import numpy as np
import pytest

from maskvlm_jax.data import ledger
from maskvlm_jax.errors import UserError
from tests.conftest import ROOT

BATCH = 8


def rows(step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(1000, size=BATCH)


def fingerprint(steps: range, *, process: int = 0, processes: int = 1, total: int = 0) -> dict[str, str]:
    share = BATCH // processes
    counted = ledger.Ledger("source", batch_size=BATCH, first_row=process * share, total=total)
    for step in steps:
        counted.add(step, rows(step)[process * share : (process + 1) * share])
    return counted.told()


STRAIGHT = fingerprint(range(1, 11))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_add_up_to_one(processes):
    told = [fingerprint(range(1, 11), process=p, processes=processes) for p in range(processes)]
    for key in ("rows", "last_batch"):
        assert sum(int(part[key], 16) for part in told) % 2**64 == int(STRAIGHT[key], 16)


def test_a_run_that_goes_on_ends_with_the_same_fingerprint():
    first = fingerprint(range(1, 5))
    assert fingerprint(range(5, 11), total=int(first["rows"], 16)) == STRAIGHT


def test_another_example_position_or_order_gives_another_fingerprint():
    positions, examples = np.arange(5), np.array([3, 1, 4, 1, 5])
    seen = {
        ledger.hash_rows(positions, examples),
        ledger.hash_rows(positions, examples[::-1]),
        ledger.hash_rows(positions + 1, examples),
        ledger.hash_rows(positions, examples + 1),
        ledger.hash_rows(positions[:4], examples[:4]),
        ledger.hash_rows(examples, positions),
    }
    assert len(seen) == 6


def test_hashes_are_those_of_splitmix64():
    # The first outputs of the generator with seed 0 are the mix of 0, then of its increment, and so on.
    mixed = ledger._mix(np.array([0, 0x9E3779B97F4A7C15], np.uint64))
    assert [int(x) for x in mixed] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_a_checkpoint_of_another_stream_is_refused():
    order = lambda position: int(rows(position // BATCH + 1)[position % BATCH])  # noqa: E731
    asked = {"step": 10, "batch_size": BATCH, "order": order}
    assert ledger.check(STRAIGHT, source="source", **asked) == int(STRAIGHT["rows"], 16)
    with pytest.raises(UserError, match="the training data are not those that this run began with"):
        ledger.check(STRAIGHT, source="another", **asked)
    with pytest.raises(UserError, match="the examples would come in another order"):
        ledger.check(STRAIGHT, source="source", **asked | {"order": lambda position: 0})


READ = """
import json, sys
from tests.data.test_ledger import read
print(json.dumps(read(json.loads(sys.argv[1]))))
"""


def read(options: dict) -> dict[str, str]:
    """The fingerprint of what one process reads of a toy run's stream, in a process of its own."""
    from maskvlm_jax import train
    from maskvlm_jax.data import pipeline
    from maskvlm_jax.data.sources import open_training_source
    from tests.conftest import toy_config
    from tests.data.test_pipeline import make_tokenizer

    config = toy_config(f"data={options['data']}")
    if options["data"] != "scenes":
        with config.unlocked():
            for seed, part in enumerate(config.data.mixture.values()):
                part.scenes_seed, part.source, part.weight, part.limit = seed, "scenes", 1.0 + seed, 10 + seed
    source = open_training_source(config.data.to_dict(), 32)
    process, processes = options.get("process", 0), options.get("processes", 1)
    counted = ledger.Ledger(
        source.fingerprint, batch_size=8, first_row=process * 8 // processes, total=options.get("total", 0)
    )
    start, stop = options.get("steps", (0, 8))
    stream = pipeline.train_stream(
        source,
        train.make_example(config, source, make_tokenizer(source)),
        batch_size=8,
        seed=3,
        start=start,
        stop=stop,
        limit=0,
        workers=options.get("workers", 0),
        threads=1,
        process=process,
        processes=processes,
    )
    for step, batch in enumerate(stream, start=start + 1):
        counted.add(step, batch["index"])
    stream.close()
    return counted.told()


def read_apart(*several: dict) -> list[dict[str, str]]:
    """`read` in a process each, side by side."""
    running = [
        subprocess.Popen([sys.executable, "-c", READ, json.dumps(options)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for options in several
    ]
    return [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]


@pytest.mark.parametrize("data", ["scenes", "scenes+coco+vg"])
def test_one_fingerprint_for_any_number_of_processes_and_workers_straight_or_stopped(data):
    straight = read({"data": data})
    with_workers, *parts = read_apart(
        {"data": data, "workers": 2}, *({"data": data, "process": p, "processes": 2} for p in range(2))
    )
    assert with_workers == straight
    parts += [read({"data": data, "process": p, "processes": 4}) for p in range(4)]
    for shares in (parts[:2], parts[2:]):
        assert sum(int(part["rows"], 16) for part in shares) % 2**64 == int(straight["rows"], 16)
    stopped = read({"data": data, "steps": (0, 3)})
    assert read({"data": data, "steps": (3, 8), "total": int(stopped["rows"], 16)}) == straight
