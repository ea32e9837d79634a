"""Vectors in Milvus, for indexes that are larger than a machine; Milvus Lite, a local file, is the same client.

The catalogue stays in the folder of the index; a collection holds the vectors, by row, in float32.
"""

import contextlib
import os
from collections.abc import Iterator

import numpy as np

from maskvlm_jax.runtime.errors import UserError, first_line
from maskvlm_jax.search.engines import living

_MOST = 16_384  # rows that Milvus gives at a time
_PART = 1_000  # rows in one request
_TOKEN = "MILVUS_TOKEN"  # the variable with what a server asks for, "user:password" or a key


class MilvusStore:
    """A collection of unit vectors by row; made where it is missing.

    Args:
        url: of a server, or a file that ends in .db; collection: its name there.
        embed_dim: numbers of a vector.

    Raises:
        UserError: pymilvus is missing, or the server does not answer.
    """

    def __init__(self, url: str, collection: str, embed_dim: int):
        try:
            import pymilvus
        except ImportError as error:
            raise UserError("--store=milvus needs the package pymilvus: pip install pymilvus milvus-lite") from error
        self._errors, self._url, self._name = (pymilvus.MilvusException, OSError), url, collection
        with self._told():
            self._client = pymilvus.MilvusClient(url, token=os.environ.get(_TOKEN, ""), timeout=30)
            if not self._client.has_collection(collection):
                schema = self._client.create_schema(auto_id=False)
                schema.add_field("row", pymilvus.DataType.INT64, is_primary=True)
                schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=embed_dim)
                by = self._client.prepare_index_params()
                by.add_index("vector", index_type="AUTOINDEX", metric_type="IP")
                # Strong: a query sees what an update has just written.
                options = {"schema": schema, "index_params": by, "consistency_level": "Strong"}
                self._client.create_collection(collection, **options)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Names the server in its errors."""
        try:
            yield
        except self._errors as error:
            raise UserError(f"Milvus at {self._url}: {first_line(error)}; the same command goes on") from error

    def write(self, first: int, vectors: np.ndarray) -> None:
        """As `ExactStore.write`."""
        rows = [{"row": first + place, "vector": vector} for place, vector in enumerate(vectors.astype(np.float32))]
        with self._told():
            for start in range(0, len(rows), _PART):
                self._client.upsert(self._name, rows[start : start + _PART])

    def read(self, rows: np.ndarray) -> np.ndarray:
        """As `ExactStore.read`."""
        found: dict[int, list[float]] = {}
        with self._told():
            for start in range(0, len(rows), _PART):
                ids = [int(row) for row in rows[start : start + _PART]]
                for one in self._client.get(self._name, ids, output_fields=["row", "vector"]):
                    found[one["row"]] = one["vector"]
        if missing := [int(row) for row in rows if int(row) not in found]:
            raise UserError(f"Milvus at {self._url} has no vector of row {missing[0]}; make the index anew")
        return np.array([found[int(row)] for row in rows], np.float32)

    def top(self, query: np.ndarray, k: int, live: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `ExactStore.top`, of what the collection's index finds."""
        cosines: dict[int, float] = {}
        most = min(_MOST, len(live))

        def ask(asked: int) -> np.ndarray:
            with self._told():
                hits = self._client.search(self._name, [query.tolist()], limit=asked, output_fields=["row"])[0]
            cosines.update({hit["row"]: hit["distance"] for hit in hits})
            return np.array([hit["row"] for hit in hits], np.int64)

        rows = living(ask, k, live, most)[:k] if most else np.zeros(0, np.int64)
        return rows, np.array([cosines[row] for row in rows.tolist()], np.float32)

    def finish(self, rows: int) -> None:
        """Nothing is left to do: the server keeps its index itself."""
