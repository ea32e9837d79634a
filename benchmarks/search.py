"""Times a query among a million vectors: exact on one core, and through a graph of usearch, with what that misses.

    python benchmarks/search.py
    python benchmarks/search.py --vectors 1000000 --width 256 --kind uniform --queries 100 --json

Both are the stores of `maskvlm_jax.search`, vectors in a temporary folder, queries one at a time on one core; all cores
build the graph, and its searches look at more or fewer of its vectors. Kinds of vectors: `uniform` on the sphere, the
hardest case for a graph, since nothing is near anything; `few` of 32 directions and a little of all others. Their
spread is that of 34 equal directions, (Σ λ)² / Σ λ² over the eigenvalues of the covariance; the test scenes of the
first run have 10. Where other programs run beside it, what counts is the time of its own.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.command import finish
from maskvlm_jax.runtime import host
from maskvlm_jax.search.stores import Store
from maskvlm_jax.search.usearch_cache import CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH, CachedStore
from maskvlm_jax.search.vectors import ExactStore

K = 10
DIRECTIONS, REST = 32, 0.3  # of `few`: how many, and the length of what lies in no one of them, of theirs
BLOCK = 65_536
EXPANSIONS = (64, 128, EXPANSION_SEARCH, 512)


def blocks(kind: str, count: int, width: int, seed: int) -> Iterator[np.ndarray]:
    """Unit vectors, a block at a time."""
    dice = np.random.default_rng(seed)
    directions = np.random.default_rng(0).standard_normal((DIRECTIONS, width), np.float32) / np.sqrt(width)
    for start in range(0, count, BLOCK):
        rows = min(BLOCK, count - start)
        block = dice.standard_normal((rows, width), np.float32)
        if kind == "few":
            own = dice.standard_normal((rows, DIRECTIONS), np.float32) @ directions
            block = own + block * np.float32(REST * np.sqrt(DIRECTIONS / width))
        yield block / np.linalg.norm(block, axis=1, keepdims=True)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """This process on one of its cores."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def timed(store: Store, queries: np.ndarray, live: np.ndarray) -> tuple[dict[str, float], list[set[int]]]:
    """Milliseconds of a query, by the clock and of this process, and what each found."""
    seconds, own, found = [], [], []
    store.top(queries[0], K, live)
    with one_core():
        for query in queries:
            clock, used = time.perf_counter(), time.process_time()
            rows, _ = store.top(query, K, live)
            seconds.append(time.perf_counter() - clock)
            own.append(time.process_time() - used)
            found.append(set(rows.tolist()))
    told = {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    return {name: 1e3 * value for name, value in (told | {"own": statistics.median(own)}).items()}, found


def measure(kind: str, count: int, width: int, queries: int) -> dict[str, Any]:
    """All measurements by name."""
    with tempfile.TemporaryDirectory() as temporary:
        index = Path(temporary)
        exact, first = ExactStore(index, width), 0
        for block in blocks(kind, count, width, seed=1):
            exact.write(first, block)
            first += len(block)
        asked, live = next(blocks(kind, queries, width, seed=2)), np.ones(count, bool)
        exact_ms, truth = timed(exact, asked, live)
        clock = time.perf_counter()
        used = time.process_time()
        CachedStore(index, exact, width).finish(count)
        built, own, graphs = time.perf_counter() - clock, time.process_time() - used, []
        for expansion in EXPANSIONS:
            ms, found = timed(CachedStore(index, exact, width, expansion=expansion), asked, live)
            recall = sum(len(a & b) for a, b in zip(truth, found, strict=True)) / sum(map(len, truth))
            graphs.append({"expansion": expansion, "ms": ms, f"recall_at_{K}": recall})
        sizes = {path.name: path.stat().st_size / 2**20 for path in sorted(index.iterdir())}
    return {
        "kind": kind,
        "vectors": count,
        "width": width,
        "queries": queries,
        "cores": host.cores(),
        "load": os.getloadavg()[0],
        "exact_ms": exact_ms,
        "graphs": graphs,
        "connectivity": CONNECTIVITY,
        "expansion_add": EXPANSION_ADD,
        "build_seconds": built,
        "build_seconds_of_all_cores": own,
        "mib": sizes,
    }


def _told(ms: dict[str, float]) -> str:
    return f"{ms['median']:8.1f} ms a query, median ({ms['min']:.1f} to {ms['max']:.1f}), {ms['own']:.1f} of its own"


def table(result: dict[str, Any]) -> str:
    """The measurements in lines."""
    lines = [
        f"{result['vectors']:,} vectors of {result['width']} ({result['kind']}), {result['queries']} queries, "
        f"{result['cores']} cores, load {result['load']:.1f}"
    ]
    lines.append(f"{'exact':20}{_told(result['exact_ms'])}")
    for graph in result["graphs"]:
        recall = f"recall@{K} {graph[f'recall_at_{K}']:.4f}"
        lines.append(f"{'graph, looks at ' + str(graph['expansion']):20}{_told(graph['ms'])}, {recall}")
    lines.append(
        f"the graph was built in {result['build_seconds']:,.0f} s, {result['build_seconds_of_all_cores']:,.0f} of its "
        f"own on all cores, connectivity {result['connectivity']}, looking at "
        f"{result['expansion_add']}"
    )
    lines.append(", ".join(f"{name} {size:,.0f} MiB" for name, size in result["mib"].items()))
    return "\n".join(lines)


def main() -> int:
    """Reads the flags, measures and prints; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("few", "uniform"), default="few")
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if min(args.vectors, args.width, args.queries) < 1:
        parser.error("numbers must be 1 or more")
    return finish(lambda: measure(args.kind, args.vectors, args.width, args.queries), table, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
