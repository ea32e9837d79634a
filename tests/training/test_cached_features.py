"""Features of a frozen image encoder that are kept give the run that encodes every picture in every step."""

import jax
import numpy as np
import pytest

from maskvlm_jax.data.batch import FEATURES
from maskvlm_jax.runtime import sharding
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.training import build, cached_features
from maskvlm_jax.training.cached_features import CachedFeatures
from tests.conftest import toy_config
from tests.reference import toy
from tests.training.steps import host_batches, one_device

PLAIN = {"optim__freeze": ("vlm/image_encoder",), "data__augment__crop_scale": (1.0, 1.0)}


@pytest.mark.parametrize(
    "values",
    [
        {},
        pytest.param({"optim__accumulate": 2}, marks=pytest.mark.slow),
        pytest.param({"model__image__hidden": "drop"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_step_with_kept_features_is_the_step_that_encodes(values, tmp_path):
    config, mesh = toy_config(**PLAIN, data__cache_features=str(tmp_path), **values), one_device()
    cached_features.check(config)
    batch = host_batches(config, 1)[0]
    with jax.set_mesh(mesh):
        built = build.build(config, mesh)
        shapes = build.described(config, built, mesh)[1]
        shape, dtype = build.feature_shape(config)
        arguments = {"examples": 20, "shape": shape, "dtype": dtype, "folder": tmp_path, "mesh": mesh}
        features = CachedFeatures(build.image_encoder(config), key="a", **arguments)
        index, results = np.array([3, 5, 1, 0, 9, 2, 7, 4]), []
        replaced = np.array([0, 0, 1, 0, 0, 0, 0, 0])
        for keep in (False, True):
            state = built.init()
            if keep:
                encoder = state.params["vlm"]["image_encoder"]
                first = features.add(encoder, batch, index, replaced)
                # What is kept is read back; of the row that another example stood in for nothing is kept.
                again = CachedFeatures(build.image_encoder(config), key="a", **arguments)  # as the next run does
                other = again.add(encoder, {**batch, "image": np.zeros_like(batch["image"])}, index, replaced)
                same = (first[FEATURES] == other[FEATURES]).all((1, 2))
                assert same.tolist() == [True, True, False, True, True, True, True, True]
                given = first
                assert {name: (value.shape, value.dtype) for name, value in given.items()} == {
                    name: (value.shape, value.dtype) for name, value in shapes.items()
                }
            else:
                given = batch
            state, metrics = built.step(state, sharding.put(given, mesh))
            results.append((jax.device_get(state.params), {name: float(value) for name, value in metrics.items()}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.done", "a.features"]
    (ours, told), (theirs, expected) = results
    for name, value in expected.items():
        assert told[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    toy.assert_trees_close(ours, theirs, 1e-5)


@pytest.mark.parametrize(
    "values, flag",
    [
        ({"data__augment__crop_scale": (0.4, 1.0)}, "data.augment.crop_scale=(1.0,1.0)"),
        ({"data__augment__flip": True}, "data.augment.flip=False"),
        ({"data__augment__randaugment_ops": 1}, "data.augment.randaugment_ops=0"),
        ({"data__modality_dropout": 0.1}, "data.modality_dropout=0.0"),
        ({"model__image__dropout": 0.1}, "model.image.dropout=0.0"),
        ({"optim__freeze": ()}, "optim.freeze=('vlm/image_encoder',)"),
        ({"optim__freeze": ("vlm/image_encoder/blocks",)}, "optim.freeze=('vlm/image_encoder',)"),
    ],
    ids=str,
)
def test_what_would_change_the_features_is_told(values, flag):
    config = toy_config(**PLAIN | values, data__cache_features="features")
    with pytest.raises(UserError) as error:
        cached_features.check(config)
    assert str(error.value) == f"data.cache_features keeps what pictures always become; set --config.{flag}"


def test_a_moving_average_that_is_read_goes_without():
    config = toy_config("recipe=albef", **PLAIN, data__cache_features="features")
    with pytest.raises(UserError, match="moving average is not read"):
        cached_features.check(config)


def test_features_of_another_encoder_other_pictures_or_another_size_have_another_name():
    config = toy_config()
    with jax.set_mesh(one_device()):
        encoder = build.build(config, one_device()).init().params["vlm"]["image_encoder"]
    changed = jax.tree.map(lambda leaf: leaf + 1, encoder)
    one = cached_features.key(config, encoder, "abc", 10)
    assert one == cached_features.key(toy_config(model__text__depth=2), encoder, "abc", 10)
    assert one == cached_features.key(toy_config(model__image__hidden="drop"), encoder, "abc", 10)
    assert one == cached_features.key(config, {**encoder, "mask_token": changed["mask_token"]}, "abc", 10)
    others = [
        cached_features.key(config, {**encoder, "class_token": changed["class_token"]}, "abc", 10),
        cached_features.key(config, encoder, "abd", 10),
        cached_features.key(config, encoder, "abc", 11),
        cached_features.key(toy_config(model__image__image_size=48), encoder, "abc", 10),
    ]
    assert len({one, *others}) == 5
