"""A graph of neighbours beside the exact vectors, from usearch: a query then looks at a few thousand of them.

What it finds is compared exactly, and rows that it does not have yet are searched exactly. It is a cache: where it is
missing or damaged the next update builds it anew, and until then everything is searched exactly.
"""

import os
import threading
from pathlib import Path

import numpy as np
from tqdm import tqdm

from maskvlm_jax.runtime.errors import UserError, writing
from maskvlm_jax.search.engines import living
from maskvlm_jax.search.vectors import ExactStore

_FILE = "neighbours.usearch"
_BLOCK = 16_384  # rows that are added at a time
_AT_LEAST = 32  # half of the candidates that are compared exactly
# Neighbours of each vector in the graph, and how many are looked at when one is added and when one is looked for:
# benchmarks/search.py tells what they cost and find.
CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH = 32, 128, 256


def _usearch():
    try:
        from usearch import index
    except ImportError as error:
        raise UserError("--cache=usearch needs the package usearch: pip install usearch") from error
    return index


def new_graph(width: int):
    """An empty graph of unit vectors."""
    return _usearch().Index(
        ndim=width,
        metric="ip",
        dtype="f16",
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION_ADD,
    )


class CachedStore:
    """`exact` with a graph of its vectors in the folder of the index."""

    def __init__(self, index: Path, exact: ExactStore, embed_dim: int, *, expansion: int = EXPANSION_SEARCH):
        _usearch()
        self._path, self._exact, self._width = index / _FILE, exact, embed_dim
        self._expansion = expansion  # vectors that are looked at in a search
        self.write, self.read = exact.write, exact.read
        self._graph, self._version, self._opening = None, None, threading.Lock()

    def top(self, query: np.ndarray, k: int, live: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `ExactStore.top`, of what the graph finds."""
        graph = self._opened()
        if not graph or len(graph) > len(live):  # the graph is of an update that this query does not know of
            return self._exact.top(query, k, live)
        count, k = len(graph), min(k, int(live.sum()))

        def ask(asked: int) -> np.ndarray:
            return graph.search(query.astype(np.float32), asked).keys.astype(np.int64)

        rows = living(ask, max(k, _AT_LEAST), live, count)
        newer, _ = self._exact.top(query, k, live, first=count)
        rows = np.concatenate([rows, newer])
        return self._exact.nearest(query, rows, k) if len(rows) >= k else self._exact.top(query, k, live)

    def finish(self, rows: int) -> None:
        """Adds the rows that the graph does not have, and keeps it."""
        graph = self._opened()
        if graph is None or len(graph) > rows:
            graph = new_graph(self._width)
        if len(graph) == rows:
            return
        with tqdm(total=rows - len(graph), unit=" vectors", desc="neighbours", disable=None, leave=False) as bar:
            for start in range(len(graph), rows, _BLOCK):
                block = np.arange(start, min(start + _BLOCK, rows))
                graph.add(block, self._exact.read(block))
                bar.update(len(block))
        temporary = self._path.with_suffix(".partial")
        with writing(self._path):
            graph.save(str(temporary))
            os.replace(temporary, self._path)

    def _opened(self):
        """The graph that is kept, None where there is none that can be read; read anew where it was replaced."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        with self._opening:
            version = found.st_mtime_ns, found.st_ino
            if version != self._version:
                self._graph, self._version = self._read(), version
            return self._graph

    def _read(self):
        try:
            graph = _usearch().Index.restore(str(self._path))
        except (ValueError, RuntimeError, OSError):
            return None
        if graph is None or graph.ndim != self._width:
            return None
        graph.expansion_search = self._expansion
        return graph
