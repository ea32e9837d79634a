"""Batches of examples that are alike: a function of features, seed and position, in any process, after any restart."""

import pickle

import numpy as np
import pytest

from maskvlm_jax.data import grouping, training_stream
from maskvlm_jax.data.grouping import Grouped, Grouping
from maskvlm_jax.data.scenes.source import Scenes
from maskvlm_jax.data.sources.training_set import Limited
from tests.data.streaming import make_example, make_tokenizer
from tests.reference import numpy_grouping

COUNT, BATCH, PART = 50, 4, 17  # parts of four batches, twelve batches an epoch, two examples left out
KINDS = 5  # of examples


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Features of pairs of five kinds; the pictures and the texts of a kind are near each other."""
    rng = np.random.default_rng(0)
    kind = rng.normal(size=(KINDS, 24))[np.arange(COUNT) % KINDS]
    path = tmp_path_factory.mktemp("features") / "features.npy"
    np.save(path, np.stack([grouping.whole_numbers(kind + 0.3 * rng.normal(size=kind.shape)) for _ in range(2)]))
    return path


def order(path, seed=0, ranks=(2, 4), batches=36, **options):
    """(batches, BATCH) examples."""
    options = {"batch_size": BATCH, "part": PART} | options
    made = Grouping(path, ranks=ranks, **options).seeded(seed)
    return np.array([made[i][1] for i in range(batches * BATCH)]).reshape(batches, BATCH)


def test_an_epoch_has_no_example_twice_and_the_next_ones_leave_out_others(path):
    epochs = order(path).reshape(3, -1)
    assert [len(set(epoch)) for epoch in epochs.tolist()] == [48, 48, 48]
    assert len({frozenset(set(range(COUNT)) - set(epoch)) for epoch in epochs.tolist()}) == 3


def test_the_order_is_a_function_of_features_seed_and_position(path):
    whole = order(path)
    made = pickle.loads(pickle.dumps(Grouping(path, batch_size=BATCH, part=PART, ranks=(2, 4))))
    for position in (143, 0, 77, 48, 5):  # whatever was asked for before
        assert made[position] == (0, whole.ravel()[position])
    assert (order(path, seed=1) != whole).any()
    assert (whole[:12] != whole[12:24]).any()
    assert (order(path, part=40) != whole).any() and (order(path, ranks=(1, 1)) != whole).any()


def test_a_part_is_the_chain_of_its_examples(path):
    made = Grouping(path, batch_size=BATCH, part=PART, ranks=(2, 4)).seeded(3)
    image, text = np.load(path).astype(int)
    examples = made._make_epoch(2)[0]
    for part in range(3):
        own, rng = examples[part * 16 : (part + 1) * 16], made._rng(2, part)
        first, ranks = int(rng.integers(16)), rng.integers(2, 4, 16, endpoint=True)
        assert set(ranks.tolist()) == {2, 3, 4}
        expected = numpy_grouping.chain((image[own] @ text[own].T).tolist(), first, ranks.tolist())
        np.testing.assert_array_equal(made._make_part(2, part), own[expected])


@pytest.mark.parametrize("ranks", [(1, 1), (2, 10), (40, 50)])
def test_chains_are_those_of_plain_loops_also_where_similarities_are_equal(ranks):
    rng = np.random.default_rng(1)
    similarity = rng.integers(-3, 4, (30, 30))
    drawn = rng.integers(*ranks, 30, endpoint=True)
    found = grouping.chain(similarity.astype(np.float32), 7, drawn)
    assert found.tolist() == numpy_grouping.chain(similarity.tolist(), 7, drawn.tolist())


def test_a_batch_has_examples_that_are_alike(path):
    def alike(batches):
        kinds = batches % KINDS
        return np.mean(kinds[:, :, None] == kinds[:, None, :])

    random = np.random.default_rng(0).permutation(48).reshape(12, BATCH)
    likest, semi_hard = (alike(order(path, part=48, ranks=ranks)) for ranks in ((1, 1), (2, 4)))
    assert likest > semi_hard > alike(random) + 0.2


def test_products_of_features_are_exact_in_float32():
    features = grouping.whole_numbers(np.random.default_rng(0).normal(size=(40, 512)))
    assert features.dtype == np.int8 and np.abs(np.linalg.norm(features.astype(float), axis=1) - 127).max() < 4
    exact = features.astype(int) @ features.astype(int).T
    np.testing.assert_array_equal(features.astype(np.float32) @ features.astype(np.float32).T, exact)
    assert np.abs(exact).max() < 2**24  # which float32 counts to, one by one
    np.testing.assert_array_equal(grouping.whole_numbers(np.zeros((1, 3))), [[0, 0, 0]])


@pytest.fixture(scope="module")
def grouped(path):
    source = Scenes(split="train", image_size=32, length=COUNT)
    return Grouped(source, COUNT, Grouping(path, batch_size=BATCH, part=PART, ranks=(2, 4)), "a" * 64)


def stream(source, **options):
    options = {"start": 0, "stop": 14, "workers": 0, "threads": 0} | options
    made = make_example(source, make_tokenizer(source))
    return list(training_stream.train_stream(source, made, batch_size=BATCH, seed=5, **options))


def test_the_stream_reads_the_order_of_its_seed_from_any_batch_on_and_in_any_rows(grouped, path):
    whole = stream(grouped)
    np.testing.assert_array_equal([batch["index"] for batch in whole], order(path, seed=5, batches=14))
    for first, late in zip(whole[11:], stream(grouped, start=11, threads=2), strict=True):
        for name in first:
            np.testing.assert_array_equal(first[name], late[name])
    for rows in ([0, 3], [1, 2]):
        for all_rows, some in zip(whole, stream(grouped, rows=rows), strict=True):
            np.testing.assert_array_equal(all_rows["image"][rows], some["image"])
            np.testing.assert_array_equal(all_rows["image_masked"][rows], some["image_masked"])


@pytest.mark.slow
def test_worker_processes_read_the_same(grouped):
    for ours, theirs in zip(stream(grouped), stream(grouped, workers=2), strict=True):
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])


def test_other_features_are_other_data(grouped):
    plain, other = (
        Limited(Scenes(split="train", image_size=32, length=COUNT)),
        Grouped(Scenes(split="train", image_size=32, length=COUNT), COUNT, grouped.grouping, "b" * 64),
    )
    assert len({plain.fingerprint, other.fingerprint, grouped.fingerprint}) == 3
