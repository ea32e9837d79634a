"""A checkpoint of one mesh opens on every other, bit for bit."""

import jax
import numpy as np
import pytest

from maskvlm_jax.runtime import sharding
from maskvlm_jax.training import build, train_step
from maskvlm_jax.training.checkpoint import Checkpoints
from maskvlm_jax.training.progress import Progress
from tests.conftest import toy_config
from tests.training.steps import MESHES, mesh_of, one_device


@pytest.mark.slow
def test_a_checkpoint_of_one_mesh_opens_on_every_other_and_on_one_device(tmp_path):
    config = toy_config("recipe=mamo", masking__image_cell=1)  # with a moving average

    def built(mesh):
        with jax.set_mesh(mesh):
            return build.build(config, mesh)

    meshes = [mesh_of(*axes) for axes in MESHES] + [one_device()]
    state = built(meshes[2]).init()
    expected = jax.device_get(state)
    saved = Checkpoints(tmp_path / "0")
    saved.save(state, Progress(seen=0))
    saved.close()
    for number, mesh in enumerate(meshes):
        parts = built(mesh)
        found, _ = Checkpoints(tmp_path / str(number)).restore_newest(
            train_step.abstract_state(parts.init, parts.shardings)
        )
        kernel = found.params["vlm"]["image_encoder"]["blocks"]["block"]["feed_forward"]["up"]["kernel"]
        assert (
            kernel.sharding
            == sharding.parameter_shardings(found.params, mesh)["vlm"]["image_encoder"]["blocks"]["block"][
                "feed_forward"
            ]["up"]["kernel"]
        )
        for ours, theirs in zip(jax.tree.leaves(jax.device_get(found)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        again = Checkpoints(tmp_path / str(number + 1))  # handed on from mesh to mesh
        again.save(found, Progress())
        again.close()
