"""A mixture draws from each part as its weight says, each part whole before any of it again."""

import pickle

import numpy as np
import pytest

from configs import data_sets
from maskvlm_jax.data import training_stream
from maskvlm_jax.data.mixing import BLOCK, Interleaving
from maskvlm_jax.data.scenes.source import Scenes
from maskvlm_jax.data.sources.mixture import Mixture
from maskvlm_jax.data.sources.opening import open_source, open_training_source
from maskvlm_jax.runtime.errors import UserError

WEIGHTS = [0.5, 3.0, 1.5, 0.001]


def scenes(seed: int, length: int) -> Scenes:
    return Scenes(split="train", image_size=32, seed=seed, length=length)


def mixture(weights=(1.0, 2.0, 1.0), limits=(0, 0, 0)) -> Mixture:
    sources = [scenes(seed, length) for seed, length in enumerate((40, 100, 7))]
    return Mixture(list(zip(("a", "b", "c"), sources, weights, limits, strict=True)))


def test_a_batch_larger_than_what_the_limits_leave_is_refused():
    assert training_stream.check_batch_size(mixture(limits=(10, 20, 0)), 37) == 37
    with pytest.raises(UserError, match="batch_size 38 is larger than the data, 37 examples"):
        training_stream.check_batch_size(mixture(limits=(10, 20, 0)), 38)


def test_each_part_has_its_share_of_every_stretch():
    parts = np.array([Interleaving(WEIGHTS, seed=1)[i][0] for i in range(20 * BLOCK)])
    shares = np.array(WEIGHTS) / sum(WEIGHTS)
    for end in range(BLOCK, len(parts) + 1, BLOCK):
        counts = np.bincount(parts[:end], minlength=4)
        assert np.all(np.abs(counts - end * shares) < len(WEIGHTS)), end


def test_the_draws_of_a_part_are_numbered_without_a_gap():
    seen: dict[int, list[int]] = {}
    for position in range(5 * BLOCK):
        part, draw = Interleaving(WEIGHTS, seed=1)[position] if position % 997 == 0 else SHARED[position]
        seen.setdefault(part, []).append(draw)
    assert all(draws == list(range(len(draws))) for draws in seen.values())


SHARED = Interleaving(WEIGHTS, seed=1)


def test_the_order_is_random_and_depends_on_seed_and_position_alone():
    one, other = Interleaving(WEIGHTS, seed=1), Interleaving(WEIGHTS, seed=2)
    positions = [7 * BLOCK + 5, 3, BLOCK - 1, BLOCK, 3]
    assert [one[i] for i in positions] == [SHARED[i] for i in positions]
    assert [one[i] for i in range(64)] != [other[i] for i in range(64)]
    assert [one[i][0] for i in range(64)] != [one[BLOCK + i][0] for i in range(64)]
    copy = pickle.loads(pickle.dumps(one))
    assert [copy[i] for i in positions] == [one[i] for i in positions]


def test_a_part_is_read_whole_before_any_of_it_comes_again():
    order = training_stream.order(mixture(), seed=5)
    drawn = [order[i] for i in range(400)]
    first = [i for i in drawn if i < 40]
    assert sorted(first[:40]) == list(range(40)) and sorted(first[40:80]) == list(range(40))
    assert first[:40] != first[40:80]
    last = [i for i in drawn if i >= 140]
    assert sorted(last[:7]) == list(range(140, 147))


def test_limits_hold_for_each_part():
    order = training_stream.order(mixture(limits=(4, 0, 2)), seed=5)
    drawn = {order[i] for i in range(1000)}
    assert drawn == {*range(4), *range(40, 140), 140, 141}


def test_weights_of_zero_draw_by_size():
    assert mixture(weights=(0.0, 0.0, 0.0)).weights == [40, 100, 7]


@pytest.mark.parametrize("weights", [(1.0, 0.0, 1.0), (1.0, -1.0, 1.0)])
def test_weights_that_leave_a_part_out_are_refused(weights):
    with pytest.raises(UserError, match=r"the weights of a mixture are a 1\.0, b"):
        mixture(weights=weights)


def test_an_example_is_that_of_its_part_under_the_part_s_name():
    mixed, second = mixture(), scenes(1, 100)
    assert len(mixed) == 147
    assert mixed.id(40) == f"b/{second.id(0)}" == mixed[40]["id"]
    assert mixed.captions(41) == second.captions(1) == mixed[41]["captions"]
    np.testing.assert_array_equal(mixed[139]["image"], second[99]["image"])
    assert mixed.fingerprint != mixture(limits=(0, 0, 0)).fingerprint[::-1]
    assert mixed.fingerprint == mixture().fingerprint != Mixture([("a", second, 0.0, 0)]).fingerprint


def test_a_tokenizer_is_trained_on_a_share_of_every_part():
    assert mixture().first(1000) == list(range(147))
    assert mixture(limits=(20, 0, 0)).first(60) == [*range(10), *range(40, 88), *range(140, 144)]


def test_a_config_mixes_sets_by_a_plus_and_is_scored_on_the_first():
    data = data_sets.data_block("scenes+scenes").to_dict()
    assert list(data["mixture"]) == ["scenes"] and "root" not in data
    data = data_sets.data_block("scenes+coco").to_dict()
    assert data["mixture"]["coco"]["captions"] == "dataset_coco.json"
    assert data["evaluation_set"] == "scenes"
    data["mixture"] = {"two": {**data["mixture"]["scenes"], "scenes_seed": 1}, "one": data["mixture"]["scenes"]}
    data["evaluation_set"] = "two"
    mixed = open_training_source(data, 32)
    assert mixed.id(0).startswith("one/") and mixed.id(len(mixed) - 1).startswith("two/")
    assert open_source(data, "val", 32).fingerprint == Scenes(split="val", image_size=32, seed=1).fingerprint
    with pytest.raises(UserError, match=r"data\.evaluation_set is 'three'; choose among one, two"):
        open_source(data | {"evaluation_set": "three"}, "val", 32)


def test_a_set_of_a_mixture_that_is_not_there_is_named_with_its_flag():
    with pytest.raises(UserError, match=r"coco: data root 'data/coco' is not .* --config\.data\.mixture\.coco\.root="):
        open_training_source(data_sets.data_block("scenes+coco").to_dict(), 32)
