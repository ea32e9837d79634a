"""A model of pictures alone trains alike on any devices, starts from encoders, and is itself a start for others."""

import json

import numpy as np
import pytest

import maskvlm_jax
from configs import finetune, pretrain
from maskvlm_jax.data import run_tokenizer
from maskvlm_jax.models.pretrained import encoders, positions
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.serving.exports import exporting
from maskvlm_jax.settings import rules
from maskvlm_jax.training import build, initial_state
from tests.conftest import ROOT, toy_config
from tests.reference import exporting as exports
from tests.reference import toy
from tests.training.steps import first_gradients, mesh_of, one_device, share_apart, train
from tests.training.test_starting_points import started, stored

DECODER = {"objectives__masked_patches__decoder__width": 16, "objectives__masked_patches__decoder__heads": 2}


def config_of(**values):
    return toy_config("recipe=fastmim", masking__image_cell=1, **DECODER, **values)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """That of a toy model with random parameters."""
    folder = tmp_path_factory.mktemp("pictures") / "old"
    folder.mkdir()
    exports.make_workdir(folder, config_of())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("axes", [(8, 1, 1), (2, 2, 2)])
def test_eight_devices_give_the_losses_and_parameters_of_one(axes):
    (state, told), (expected_state, expected) = (train(config_of(), mesh, 4) for mesh in (mesh_of(*axes), one_device()))
    for ours, theirs in zip(told, expected, strict=True):
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=2e-4, atol=2e-5)
    assert share_apart(state.params, expected_state.params) < 0.02


def test_microbatches_on_eight_devices_give_the_gradients_of_the_whole_batch_on_one():
    """Two of eight examples each, of which a pair of devices has one."""
    whole = first_gradients(config_of())
    cut = first_gradients(config_of(optim__accumulate=2), mesh_of(2, 2, 2))
    np.testing.assert_allclose(cut[1], whole[1], rtol=1e-5)
    toy.assert_trees_close(cut[0], whole[0], 2e-5)


def test_the_image_encoder_of_a_model_that_reads_text_starts_from_it(workdir, tmp_path, capsys):
    config = toy_config(checkpoint=str(workdir), model__image__image_size=48)
    found, before = started(config, tmp_path / "new", one_device()), stored(workdir)
    place, colour = "vlm/image_encoder/position", "vlm/image_encoder/mask_token"
    taken = {path for path in before if path.startswith("vlm/")} - {place, colour}
    assert taken == {path for path in found if path.startswith("vlm/image_encoder/")} - {place, colour}
    for path in taken:
        np.testing.assert_array_equal(found[path], before[path], err_msg=path)
    np.testing.assert_allclose(found[place][0], positions.resize(before[place][0], 1, 6), rtol=1e-6)
    assert before[colour].shape == (1, 1, 3) and found[colour].shape == (1, 1, 32)
    told = capsys.readouterr().out
    assert "old reads no text: all but the image encoder starts from new parameters" in told
    assert "positions of 16 patches are resized to 6 x 6" in told
    assert run_tokenizer._given(config) == "", "its words were never read"


@pytest.mark.slow
def test_a_colour_stays_where_hidden_patches_are_one(workdir, tmp_path):
    for recipe in ("maskvlm", "clip"):
        values = {"model__image__hidden": "pixel"} if recipe == "maskvlm" else {}
        config = toy_config(f"recipe={recipe}", **values, checkpoint=str(workdir))
        found, colour = started(config, tmp_path / recipe, one_device()), "vlm/image_encoder/mask_token"
        if recipe == "maskvlm":
            np.testing.assert_array_equal(found[colour], stored(workdir)[colour])
        assert (colour in found) == (recipe == "maskvlm")


@pytest.mark.slow
def test_larger_pictures_go_on_from_small_ones(workdir, tmp_path):
    """Progressive resolution: a run after the other."""
    config = config_of(checkpoint=str(workdir), model__image__image_size=48)
    found, before = started(config, tmp_path / "new", one_device()), stored(workdir)
    assert {path for path in found if found[path].shape != before[path].shape} == {"vlm/image_encoder/position"}
    np.testing.assert_array_equal(*(x["objectives/masked_patches/to_target/kernel"] for x in (found, before)))


def test_another_patch_is_another_model(workdir):
    config = toy_config(checkpoint=str(workdir), model__image__patch=16, model__image__image_size=48)
    with pytest.raises(UserError, match=r"has other values of model\.image\.patch; .*--config\.model\.image\.patch=8"):
        initial_state.check(config)


@pytest.mark.parametrize(("family", "cell"), [("dinov2", 4), pytest.param("vit", 2, marks=pytest.mark.slow)])
def test_an_image_encoder_may_be_read_in(family, cell, tmp_path):
    config = pretrain.get_config("recipe=fastmim,size=encoders")
    config.init.image = str(ROOT / "tests" / "reference" / "encoders" / family)
    encoders.complete(config, ())
    with pytest.raises(UserError, match=rf"cell 8 does not divide .*patch {config.model.image.patch}; set .*cell=\d$"):
        rules.check(config)
    config.objectives.masked_patches.cell = cell
    rules.check(config)
    assert config.objectives.masked_patches.decoder.width == config.model.image.width == 16
    found, read = started(config, tmp_path, one_device()), encoders.read(config, "image").parameters
    for path, value in read.items():
        if path != "mask_token":
            np.testing.assert_array_equal(found[f"vlm/image_encoder/{path}"], value, err_msg=path)
    assert found["vlm/image_encoder/mask_token"].shape == (1, 1, 3)
    assert "mask_token" in json.loads((tmp_path / encoders.FILE).read_text())["image"]["fresh"]


def test_classes_are_learned_on_it_and_nothing_is_frozen():
    config = finetune.get_config("task=classification,recipe=fastmim")
    rules.check(config)
    assert build.frozen_parameters(config) == {}
    assert {path.split("/")[1] for path in build.parameter_sizes(config)} == {"image_encoder", "classification"}


def test_in_python_it_has_features_and_says_what_it_cannot_do(workdir, tmp_path):
    exporting.export(str(workdir), str(tmp_path / "out"))
    assert not (tmp_path / "out" / "torch_model.py").exists() and not (tmp_path / "out" / "text_encoder").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "A model of pictures of " in card and "text encoder" not in card
    images = [np.full((20, 30, 3), value, np.uint8) for value in (0, 200)]
    model = maskvlm_jax.load(tmp_path / "out", batch_size=8)
    whole, mean, first = (model.features(images, pooling=name)["image"] for name in ("none", "mean", "first"))
    assert whole.shape == (2, 17, 32)
    np.testing.assert_allclose(mean, whole[:, 1:].mean(axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(first, whole[:, 0])
    assert model.features(images[0], pooling="mean")["image"].shape == (32,)
    for ask, told in (
        (lambda: model.features(texts="a ring"), "reads no text: it was trained on pictures alone"),
        (lambda: model.features(images, pooling="max"), "pooling is 'max'; give none, first, mean"),
        (lambda: model.encode_images(images), "has no contrastive space"),
        (lambda: model.match(images, "a ring"), "has no matching head"),
        (lambda: model.explain(images[0], "a ring"), "has no heat over pictures"),
    ):
        with pytest.raises(ValueError, match=told):
            ask()
