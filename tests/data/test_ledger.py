"""The fingerprint of a stream is the same however its rows are shared and however often the run was stopped."""

import json
import subprocess
import sys

import numpy as np
import pytest

from maskvlm_jax.data import ledger
from maskvlm_jax.runtime.errors import UserError
from tests.conftest import ROOT
from tests.data.ledger_reading import BATCH, read


def rows(step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(1000, size=BATCH)


def taken(steps: range, *, own: slice = slice(0, BATCH), counted: bool = True) -> dict[str, int]:
    places = np.arange(BATCH)[own]
    counts = ledger.Ledger("source", batch_size=BATCH, rows=places, counted=np.full(len(places), counted))
    for step in steps:
        counts.add(step, rows(step)[own])
    return counts.take()


def told(*parts: dict[str, int], before: str = "0") -> dict[str, str]:
    return ledger.Ledger("source", batch_size=BATCH, rows=np.arange(BATCH), counted=None).entry(before, list(parts))


STRAIGHT = told(taken(range(1, 11)))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_add_up_to_one(processes):
    share = BATCH // processes
    own = [slice(process * share, (process + 1) * share) for process in range(processes)]
    assert told(*(taken(range(1, 11), own=part) for part in own)) == STRAIGHT


def test_rows_that_two_processes_hold_count_once():
    assert told(taken(range(1, 11)), taken(range(1, 11), counted=False)) == STRAIGHT


def test_a_run_that_goes_on_ends_with_the_same_fingerprint():
    first = told(taken(range(1, 5)))
    assert told(taken(range(5, 11)), before=first["rows"]) == STRAIGHT


def test_what_was_taken_is_taken_once():
    counts = ledger.Ledger("source", batch_size=BATCH, rows=np.arange(BATCH), counted=np.ones(BATCH, bool))
    rows_of = []
    for step in range(1, 11):
        counts.add(step, rows(step))
        rows_of.append(counts.take())
    total = sum(part["rows"] for part in rows_of) % ledger.MODULUS
    assert f"{total:016x}" == STRAIGHT["rows"] and f"{rows_of[-1]['last_batch']:016x}" == STRAIGHT["last_batch"]


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
    ledger.check(STRAIGHT, source="source", **asked)
    with pytest.raises(UserError, match="the training data are not those that this run began with"):
        ledger.check(STRAIGHT, source="another", **asked)
    with pytest.raises(UserError, match="the examples would come in another order"):
        ledger.check(STRAIGHT, source="source", **asked | {"order": lambda position: 0})


def read_apart(*several: dict) -> list[dict[str, int]]:
    """`read` in a process each, side by side."""
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.data.ledger_reading", json.dumps(options)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for options in several
    ]
    return [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]


@pytest.mark.parametrize("data", ["scenes", "scenes+coco+vg"])
def test_one_fingerprint_for_any_number_of_processes_and_workers_straight_or_stopped(data):
    straight = read({"data": data})
    with_workers, *halves = read_apart(
        {"data": data, "workers": 2}, {"data": data, "rows": [0, 1, 2, 3]}, {"data": data, "rows": [4, 5, 6, 7]}
    )
    assert with_workers == straight
    quarters = [read({"data": data, "rows": [row, row + 4]}) for row in range(4)]
    for shares in (halves, quarters):
        assert told(*shares) == told(straight)
    stopped = read({"data": data, "steps": (0, 3)})
    assert told(read({"data": data, "steps": (3, 8)}), before=told(stopped)["rows"]) == told(straight)
