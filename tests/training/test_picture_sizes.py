"""A run may start from one with pictures of another size: positions are resized, all else stays as it is."""

import jax
import numpy as np
import pytest

from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.training import build, initial_state
from maskvlm_jax.training.checkpoint import Checkpoints
from maskvlm_jax.weights import positions
from tests.conftest import toy_config
from tests.reference import exporting as exports
from tests.reference import toy
from tests.training.steps import mesh_of


@pytest.mark.parametrize("recipe", ["maskvlm", "m3ae"])
def test_positions_are_resized_and_all_else_stays(recipe, tmp_path, capsys):
    (tmp_path / "old").mkdir()
    exports.make_workdir(tmp_path / "old", toy_config(f"recipe={recipe}"))
    config = toy_config(f"recipe={recipe}", model__image__image_size=48, checkpoint=str(tmp_path / "old"))
    initial_state.check(config)
    mesh = mesh_of(2, 2, 2)
    with jax.set_mesh(mesh):
        built = build.build(config, mesh)
        checkpoints = Checkpoints(tmp_path / "new" / "checkpoints")
        state, _ = initial_state.restore_or_init(config, tmp_path / "new", checkpoints, built)
        checkpoints.close()
    found = toy.by_path(jax.device_get(state.params))
    old = Checkpoints(tmp_path / "old" / "checkpoints", writable=False)
    before = toy.by_path(old._checkpointer.load_checkpointables(3, {"params": None})["params"])
    old.close()
    assert found.keys() == before.keys()
    changed = {path for path in found if found[path].shape != before[path].shape}
    assert changed == {"vlm/image_encoder/position"} | (
        {"vlm/fusion/image_slots/position"} if recipe == "m3ae" else set()
    )
    for path in found.keys() - changed:
        np.testing.assert_array_equal(found[path], before[path], err_msg=path)
    for path in changed:
        first = int(config.model.image.class_token) if "encoder" in path else 0
        assert before[path].shape[1] == first + 16 and found[path].shape[1] == first + 36
        np.testing.assert_allclose(found[path][0], positions.resize(before[path][0], first, 6), rtol=1e-6)
    assert "vlm/image_encoder/position: positions of 16 patches are resized to 6 x 6" in capsys.readouterr().out


def test_another_patch_is_another_model(tmp_path):
    (tmp_path / "old").mkdir()
    exports.make_workdir(tmp_path / "old", toy_config())
    config = toy_config(model__image__image_size=64, model__image__patch=16, checkpoint=str(tmp_path / "old"))
    with pytest.raises(UserError, match=r"has other values of model\.image\.patch; .*--config\.model\.image\.patch=8"):
        initial_state.check(config)
