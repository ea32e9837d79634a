"""Positions before the first patch: class token, distillation token and registers, and a norm before the blocks."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.models.block import BlockSpec
from maskvlm_jax.models.layers import Positions
from maskvlm_jax.models.vision import ImageEncoder
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime import sharding
from maskvlm_jax.runtime.parameters import is_vector
from maskvlm_jax.settings import rules
from maskvlm_jax.training.build import model_arguments
from maskvlm_jax.training.train_step import split_model
from tests.conftest import toy_config
from tests.models.test_joint import SIZES, batch_for
from tests.reference import toy

MORE = {"registers": 3, "distillation_token": True, "norm_before": True}
CHOICES = [
    {},
    {"registers": 2},
    {"distillation_token": True},
    {"norm_before": True},
    MORE,
    {"class_token": False, "registers": 1},
]


def encoder(**choices) -> ImageEncoder:
    """An encoder of 16 patches with random parameters."""
    spec = BlockSpec(toy.WIDTH, toy.HEADS, mlp_ratio=2, eps=1e-6)
    sizes = {"image_size": toy.PIXELS, "patch": toy.PATCH, "depth": 2}
    return toy.randomised(lambda: ImageEncoder(spec, **sizes, **choices, rngs=nnx.Rngs(0)))


def normed(x: np.ndarray, norm) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    rate = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + norm.eps)
    return centred / rate * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...])


def plain(module: ImageEncoder, image: np.ndarray, keep: np.ndarray | None = None) -> np.ndarray:
    """The sequence of one picture put together token by token, the patches `keep` of it, and run through the blocks."""
    position, patches = np.asarray(module.position[...])[0], np.asarray(module.patch_embedding(image[None]))[0]
    rows = []
    for token in (module.class_token, module.distillation_token):
        if token is not None:
            rows.append(np.asarray(token[...])[0, 0] + position[len(rows)])
    patches = patches + position[len(rows) :]
    if module.register_tokens is not None:
        rows += list(np.asarray(module.register_tokens[...])[0])
    x = np.stack([*rows, *(patches if keep is None else patches[keep])])
    x = x if module.norm_before is None else normed(x, module.norm_before)
    x = jnp.asarray(x)[None]
    for layer in range(module.blocks.depth):
        x = module.blocks.layer(layer)(x)
    return normed(np.asarray(x[0]), module.norm)


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_the_sequence_is_class_token_distillation_token_registers_and_patches(choices):
    module, images = encoder(**choices), toy.batch(2)["image"]
    encoded = np.asarray(module(images))
    count = choices.get("class_token", True) + choices.get("distillation_token", False) + choices.get("registers", 0)
    assert module.prefix == count and encoded.shape == (2, count + toy.PATCHES, toy.WIDTH)
    for image, found in zip(images, encoded, strict=True):
        np.testing.assert_allclose(found, plain(module, image), rtol=2e-5, atol=2e-5)


def test_dropped_patches_leave_every_token_before_them():
    module, batch = encoder(**MORE, hidden="drop"), toy.batch(2)
    for image, hidden in zip(batch["image"], batch["image_masked"], strict=True):
        ids = np.flatnonzero(~hidden)[None]
        found = np.asarray(module(image[None], hidden[None], Positions(ids, np.ones_like(ids, bool))))[0]
        shown = np.concatenate([np.ones(module.prefix, bool), ~hidden])
        np.testing.assert_allclose(found[shown], plain(module, image, ~hidden), rtol=2e-5, atol=2e-5)
        token = module.mask_token[...][0] + module.position[...][0, 2:][hidden]
        np.testing.assert_allclose(found[~shown], token, rtol=1e-6)


def test_what_is_off_leaves_no_parameter():
    params = split_model(encoder())[1]
    assert params.keys() == {"patch_embedding", "class_token", "mask_token", "position", "blocks", "norm"}
    assert params["position"].shape == (1, 1 + toy.PATCHES, toy.WIDTH)


def test_more_tokens_do_not_decay_and_are_not_split():
    paths = toy.by_path(split_model(encoder(**MORE))[1])
    assert paths["register_tokens"].shape == (1, 3, toy.WIDTH)
    assert paths["position"].shape == (1, 2 + toy.PATCHES, toy.WIDTH)
    assert all(map(is_vector, ("register_tokens", "distillation_token", "norm_before/scale")))
    mesh = sharding.make_mesh(data=1, fsdp=8, model=1)
    placed = sharding.parameter_shardings(toy.nested(paths), mesh)
    assert placed["register_tokens"].is_fully_replicated and placed["distillation_token"].is_fully_replicated


@pytest.fixture(scope="module", params=["maskvlm", "mamo", "mlim", "m3ae"])
def model(request) -> Learner:
    """A recipe's model whose image encoder has all of `MORE`; a distillation token where there is a class token."""
    config = toy_config(f"recipe={request.param}", **SIZES)
    config.model.image.update(MORE, distillation_token=config.model.image.class_token)
    rules.check(config)
    return toy.randomised(lambda: Learner(**model_arguments(config), rngs=nnx.Rngs(0)))


def test_masked_patches_are_read_behind_all_of_them(model):
    encoder = model.vlm.image_encoder
    prefix = encoder.prefix
    assert prefix == MORE["registers"] + 2 * (encoder.class_token is not None)
    ctx = model.context(batch_for(model))
    ids = np.asarray(ctx.masked_patches.ids_BM)
    whole = np.asarray(ctx.fuse_image("masked", "clean"))
    patches = whole[:, whole.shape[1] - toy.PATCHES :]
    expected = np.take_along_axis(patches, ids[:, :, None], axis=1)
    np.testing.assert_allclose(ctx.fuse_masked_patches(), expected, rtol=2e-5, atol=2e-5)
    assert whole.shape[1] == toy.PATCHES + (prefix if hasattr(model.vlm.fusion, "text_stream") else 0)


def test_a_joint_sequence_holds_words_and_patches_alone(model):
    if hasattr(model.vlm.fusion, "text_stream"):
        pytest.skip("two streams")
    batch = batch_for(model)
    ctx = model.context(batch)
    side = ctx.image_side("clean").sequence_BSD
    assert side.shape[1] == toy.PATCHES
    image = np.asarray(ctx.image("clean"))[:, model.vlm.image_encoder.prefix :]
    added = np.asarray(side) - image
    np.testing.assert_allclose(added, np.broadcast_to(added[:1, :1], added.shape), atol=1e-5)  # nothing, or a type
