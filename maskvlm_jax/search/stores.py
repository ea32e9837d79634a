"""Where vectors are: in files of the index, or in an engine beside it.

A store writes vectors by row, reads some back, and finds the nearest to a query among the rows that are live. Rows that
it holds beyond those of the catalogue are of an update that was stopped, and are written over by the next.
"""

from pathlib import Path
from typing import Protocol

import numpy as np

from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.search.facts import Facts
from maskvlm_jax.search.vectors import ExactStore

STORES, CACHES = ("exact", "milvus"), ("", "usearch")


class Store(Protocol):
    """See `vectors.ExactStore`, which says what the arguments are."""

    def write(self, first: int, vectors: np.ndarray) -> None: ...
    def read(self, rows: np.ndarray) -> np.ndarray: ...
    def top(self, query: np.ndarray, k: int, live: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...
    def finish(self, rows: int) -> None: ...


def check(store: str, url: str, cache: str) -> None:
    """Raises UserError: there is no such store or cache, or the two do not go together."""
    for name, value, known in (("store", store, STORES), ("cache", cache, CACHES)):
        if value not in known:
            raise UserError(f"--{name} is {value!r}; give {' or '.join(filter(None, known))}")
    if (store == "milvus") != bool(url):
        raise UserError("--store=milvus and --url go together: the address of a server, or a file for Milvus Lite")
    if cache and store != "exact":
        raise UserError(f"--cache={cache} is of the store exact; {store} has an index of its own")


def open_store(index: Path, facts: Facts) -> Store:
    """The store of an index.

    Raises:
        UserError: a package is missing, or a server does not answer.
    """
    if facts.store == "milvus":
        from maskvlm_jax.search.milvus import MilvusStore

        return MilvusStore(facts.url, facts.collection, facts.embed_dim)
    exact = ExactStore(index, facts.embed_dim)
    if facts.cache == "usearch":
        from maskvlm_jax.search.usearch_cache import CachedStore

        return CachedStore(index, exact, facts.embed_dim)
    return exact
