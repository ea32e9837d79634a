"""A run may start from one with pictures of another size, or without a fusion; all that both have stays as it is."""

import jax
import numpy as np
import pytest

from maskvlm_jax.models.pretrained import positions
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.training import build, initial_state
from maskvlm_jax.training.checkpoint import Checkpoints
from tests.conftest import toy_config
from tests.reference import exporting as exports
from tests.reference import toy
from tests.training.steps import mesh_of, one_device


def started(config, workdir, mesh):
    """The parameters, by path, that a run with the config starts from."""
    initial_state.check(config)
    with jax.set_mesh(mesh):
        built = build.build(config, mesh)
        checkpoints = Checkpoints(workdir / "checkpoints")
        state, _ = initial_state.restore_or_init(config, workdir, checkpoints, built)
        checkpoints.close()
    return toy.by_path(jax.device_get(state.params))


def stored(workdir):
    """The parameters, by path, of the only checkpoint of a workdir."""
    checkpoints = Checkpoints(workdir / "checkpoints", writable=False)
    params = toy.by_path(checkpoints._checkpointer.load_checkpointables(3, {"params": None})["params"])
    checkpoints.close()
    return params


@pytest.mark.parametrize("recipe", ["maskvlm", "m3ae", pytest.param("eve", marks=pytest.mark.slow)])
def test_positions_are_resized_and_all_else_stays(recipe, tmp_path, capsys):
    (tmp_path / "old").mkdir()
    exports.make_workdir(tmp_path / "old", toy_config(f"recipe={recipe}"))
    config = toy_config(f"recipe={recipe}", model__image__image_size=48, checkpoint=str(tmp_path / "old"))
    found, before = started(config, tmp_path / "new", mesh_of(2, 2, 2)), stored(tmp_path / "old")
    assert found.keys() == before.keys()
    changed = {path for path in found if found[path].shape != before[path].shape}
    assert changed == {"vlm/image_encoder/position"} | (
        {"vlm/fusion/image_slots/position"} if recipe in ("m3ae", "eve") else set()
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


def test_a_first_stage_may_be_without_a_fusion(tmp_path, capsys):
    (tmp_path / "old").mkdir()
    exports.make_workdir(tmp_path / "old", toy_config("recipe=clip"))
    config = toy_config(checkpoint=str(tmp_path / "old"), model__image__hidden="drop")
    found, before = started(config, tmp_path / "new", one_device()), stored(tmp_path / "old")
    for path, value in before.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    new = {"/".join(path.split("/")[1:3]) for path in found.keys() - before.keys()}
    assert {path.split("/")[0] for path in new} == {
        "image_encoder",
        "fusion",
        "masked_image",
        "masked_text",
        "matching",
    }
    assert "image_encoder/mask_token" in new and all(isinstance(value, np.ndarray) for value in found.values())
    told = capsys.readouterr().out
    assert "old has no fusion: it starts from new parameters" in told
    assert "objectives.matching has no head of its kind" in told


def test_a_fusion_that_is_there_stays_as_it_is(tmp_path):
    (tmp_path / "old").mkdir()
    exports.make_workdir(tmp_path / "old", toy_config())
    config = toy_config(checkpoint=str(tmp_path / "old"), model__fusion__depth=1)
    with pytest.raises(
        UserError, match=r"has other values of model\.fusion\.depth; .*--config\.model\.fusion\.depth=2"
    ):
        initial_state.check(config)


@pytest.mark.parametrize("without", ["old", "new"])
def test_a_head_that_losses_share_goes_on_whichever_of_them_are_trained(without, tmp_path, capsys):
    (tmp_path / "old").mkdir()
    fewer = {"objectives__agreement__weight": 0.0}
    exports.make_workdir(tmp_path / "old", toy_config("recipe=semmim", **(fewer if without == "old" else {})))
    values = {"checkpoint": str(tmp_path / "old"), **(fewer if without == "new" else {})}
    found, before = (
        started(toy_config("recipe=semmim", **values), tmp_path / "new", one_device()),
        stored(tmp_path / "old"),
    )
    assert found.keys() == before.keys() and any(path.startswith("common/head/") for path in found)
    for path, value in before.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    assert "new parameters" not in capsys.readouterr().out


def test_a_shared_head_of_another_size_is_a_new_one(tmp_path, capsys):
    (tmp_path / "old").mkdir()
    exports.make_workdir(tmp_path / "old", toy_config("recipe=semmim"))
    sizes = {f"objectives__{label}__head__count": 9 for label in ("agreement", "masked_prototype")}
    config = toy_config("recipe=semmim", checkpoint=str(tmp_path / "old"), **sizes)
    found, before = started(config, tmp_path / "new", one_device()), stored(tmp_path / "old")
    assert found["common/head/kernel"].shape[1] == 9 != before["common/head/kernel"].shape[1]
    assert f"{tmp_path}/old has no head of its kind that objectives share" in capsys.readouterr().out


def test_what_a_part_of_a_checkpoint_lacks_is_named(tmp_path):
    exports.make_workdir(tmp_path, toy_config("recipe=clip"))
    checkpoints = Checkpoints(tmp_path / "checkpoints", writable=False)
    wanted = {"vlm": {"fusion": {"scale": jax.ShapeDtypeStruct((4,), np.float32)}}}
    with pytest.raises(UserError, match=r"cannot be read \(it has no vlm/fusion/scale\)"):
        checkpoints.load_params(3, wanted, part=True)
    checkpoints.close()
