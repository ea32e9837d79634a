"""The contrastive space of a new run is centred by means that are taken here one by one."""

import jax
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.training import build, centring
from tests.conftest import toy_config
from tests.training.steps import host_batches, mesh_of, one_device

VALUES = {"model__pooling__image": "first+attention", "model__pooling__text": "mean", "model__pooling__centred": True}


@pytest.mark.parametrize("devices", [(1, 1, 1), (2, 2, 2)])
def test_centres_start_at_the_means_of_the_first_examples(devices, monkeypatch):
    monkeypatch.setattr(centring, "EXAMPLES", 20)  # three batches of eight
    config = toy_config("recipe=clip", **VALUES, optim__ema_decay=0.9)
    mesh = one_device() if devices == (1, 1, 1) else mesh_of(*devices)
    given = host_batches(config, 5)
    marked = [{**batch, "index": np.arange(8), "replaced": np.zeros(8, int)} for batch in given]
    with jax.set_mesh(mesh):
        built = build.build(config, mesh)
        before = built.init()
        state, stream = centring.start(before, built.graphdef, iter(marked), None, mesh, batch_size=8)
        assert all(one is other for one, other in zip(stream, marked, strict=True)), "no example is lost, none repeated"
        firsts, others = {"image": [], "text": []}, {"image": [], "text": []}
        learner = nnx.merge(built.graphdef, before.params)
        for batch in given[:3]:
            ctx = learner.context(batch)
            for modality, x_BSD in (("image", ctx.image("clean")), ("text", ctx.text("clean"))):
                valid = np.ones(x_BSD.shape[:2], bool) if modality == "image" else batch["token_valid"]
                x_BSD = np.asarray(x_BSD, np.float64)
                firsts[modality].append(x_BSD[:, 0].mean(0))
                others[modality].append(
                    np.mean([row for x, v in zip(x_BSD, valid, strict=True) for row in x[1:][v[1:]]], 0)
                )
    for modality in ("image", "text"):
        expected = np.stack([np.mean(firsts[modality], 0), np.mean(others[modality], 0)])
        assert np.abs(expected).max() > 1e-2
        for params in (state.params, state.ema):
            np.testing.assert_allclose(params["vlm"][f"{modality}_centre"], expected, rtol=1e-4, atol=1e-5)
        assert state.params["vlm"][f"{modality}_centre"].sharding == before.params["vlm"][f"{modality}_centre"].sharding
    assert centring.is_due(before.params) and not centring.is_due(state.params)


def test_a_model_without_centres_starts_none():
    with jax.set_mesh(one_device()):
        assert not centring.is_due(build.build(toy_config(), one_device()).init().params)
