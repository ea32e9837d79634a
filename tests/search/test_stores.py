"""Every store finds what a comparison of all vectors in float32 finds."""

import sys

import numpy as np
import pytest

from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.search import stores
from maskvlm_jax.search.facts import Facts
from maskvlm_jax.search.vectors import ExactStore
from tests.search.stand_ins import unit

ROWS, WIDTH = 3_000, 32


@pytest.fixture(scope="module")
def vectors():
    return unit(np.random.default_rng(0).standard_normal((ROWS, WIDTH))).astype(np.float32)


def facts(**values):
    return Facts("folder", "model", "3", "params", "run", "a" * 64, 8, WIDTH, **values)


def places(tmp_path):
    yield facts()
    yield facts(cache="usearch")
    yield facts(store="milvus", url=str(tmp_path / "vectors.db"), collection="pictures")


@pytest.fixture(params=["exact", "usearch", "milvus"])
def store(request, tmp_path):
    """Each store, without vectors."""
    place = dict(zip(["exact", "usearch", "milvus"], places(tmp_path), strict=True))[request.param]
    if request.param != "exact":
        pytest.importorskip("usearch" if request.param == "usearch" else "milvus_lite")
    return stores.open_store(tmp_path, place)


def expected(vectors, query, k, live):
    cosines = np.where(live, vectors @ query, -np.inf)
    order = np.argsort(-cosines, kind="stable")[:k]
    return order[np.isfinite(cosines[order])]


def test_the_nearest_live_rows_are_found(store, vectors):
    first = ROWS // 2
    store.write(0, vectors[:first])
    store.finish(first)
    store.write(first, vectors[first : ROWS + 5])  # rows that the graph of usearch does not have
    live = np.random.default_rng(1).random(ROWS) < 0.3
    for k in (1, 10, 200):
        found = 0
        for query in vectors[:20]:
            rows, cosines = store.top(query, k, live)
            found += len(set(rows.tolist()) & set(expected(vectors, query, k, live).tolist()))
            np.testing.assert_allclose(cosines, vectors[rows] @ query, atol=1e-6)
            assert (np.diff(cosines) <= 0).all() and live[rows].all()
        assert found >= 0.95 * 20 * k  # a graph is searched approximately, and built by threads in any order
    np.testing.assert_array_equal(store.read([7, 3, ROWS - 1]), vectors[[7, 3, ROWS - 1]])


def test_few_rows_and_none(store, vectors):
    rows, cosines = store.top(vectors[0], 3, np.zeros(0, bool))
    assert len(rows) == len(cosines) == 0
    store.write(0, vectors[:5])
    store.finish(5)
    assert store.top(vectors[0], 3, np.zeros(5, bool))[0].tolist() == []
    found = store.top(vectors[0], 30, np.array([True, False, True, True, False]))[0]
    assert sorted(found.tolist()) == [0, 2, 3] and found[0] == 0
    store.write(3, -vectors[3:5])  # of an update that was stopped before; it does the same again
    assert store.top(-vectors[3], 1, np.ones(5, bool))[0].tolist() == [3]


def test_exact_is_exact_to_the_last_bit_of_float32(tmp_path):
    """Vectors that float16 cannot tell apart, and that it puts into another order."""
    dice = np.random.default_rng(0)
    near = unit(dice.standard_normal(WIDTH) + 1e-4 * dice.standard_normal((2_000, WIDTH))).astype(np.float32)
    store = ExactStore(tmp_path, WIDTH)
    store.write(0, near)
    live = np.ones(len(near), bool)
    for query in near[:5]:
        rows, cosines = store.top(query, 50, live)
        np.testing.assert_array_equal(cosines, np.sort(near @ query)[::-1][:50])
        coarse = np.argsort(-(near.astype(np.float16).astype(np.float32) @ query), kind="stable")[:50]
        assert set(rows.tolist()) != set(coarse.tolist())


def test_of_equal_vectors_the_first_comes_first(tmp_path, vectors):
    store = ExactStore(tmp_path, WIDTH)
    store.write(0, np.repeat(vectors[:1], 9, axis=0))
    assert store.top(vectors[0], 4, np.arange(9) != 1)[0].tolist() == [0, 2, 3, 4]


def test_a_cache_is_made_anew_where_it_is_damaged_or_of_another_index(tmp_path, vectors):
    pytest.importorskip("usearch")
    store = stores.open_store(tmp_path, facts(cache="usearch"))
    store.write(0, vectors)
    store.finish(ROWS)
    graph, live = tmp_path / "neighbours.usearch", np.ones(ROWS, bool)
    whole = graph.read_bytes()
    for content in (b"", b"no graph", whole[: len(whole) // 2]):
        graph.write_bytes(content)
        store = stores.open_store(tmp_path, facts(cache="usearch"))
        assert store.top(vectors[9], 1, live)[0].tolist() == [9]  # exactly
        store.finish(ROWS)
        assert abs(len(graph.read_bytes()) - len(whole)) < 0.05 * len(whole)
    assert store.top(vectors[9], 1, live[:100])[0].tolist() == [9]  # fewer rows than the graph has
    store.finish(100)
    assert store.top(vectors[9], 1, live[:100])[0].tolist() == [9]


@pytest.mark.parametrize(("package", "values"), [("usearch", {"cache": "usearch"}), ("pymilvus", {"store": "milvus"})])
def test_a_missing_package_is_one_line(tmp_path, monkeypatch, package, values):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"needs the package {package}: pip install {package}"):
        stores.open_store(tmp_path, facts(**values))


def test_a_server_that_is_not_there_is_named():
    pytest.importorskip("pymilvus")
    with pytest.raises(UserError, match=r"Milvus at http://127\.0\.0\.1:9: "):
        stores.open_store(None, facts(store="milvus", url="http://127.0.0.1:9", collection="c"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("faiss", "", ""), "--store is 'faiss'; give exact or milvus"),
        (("exact", "", "hnsw"), "--cache is 'hnsw'; give usearch"),
        (("milvus", "", ""), "--store=milvus and --url go together"),
        (("exact", "http://x", ""), "--store=milvus and --url go together"),
        (("milvus", "x.db", "usearch"), "is of the store exact"),
    ],
)
def test_stores_that_make_no_sense_are_refused(given, told):
    with pytest.raises(UserError, match=told):
        stores.check(*given)
