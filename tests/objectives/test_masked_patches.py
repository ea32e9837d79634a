"""Hidden patches are told from the visible ones of the picture alone, through a colour in their place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import pretrain
from maskvlm_jax.models.vision import patchify
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.settings import rules
from maskvlm_jax.training import build as builds
from maskvlm_jax.training.train_step import split_model
from tests.conftest import toy_config
from tests.models.test_joint import PATCH, SIZES, batch_for, with_hidden_pixels, with_hidden_words
from tests.reference import numpy_hog, toy

PICTURES = {name: value for name, value in SIZES.items() if "fusion" not in name}
DECODER = {"objectives__masked_patches__decoder__width": 24, "objectives__masked_patches__decoder__heads": 2}


def build(**values) -> Learner:
    config = toy_config("recipe=fastmim", **PICTURES | DECODER | {"objectives__masked_patches__cell": 2} | values)
    rules.check(config)
    return toy.randomised(lambda: Learner(**builds.model_arguments(config), rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def batch(model):
    return batch_for(model)


def predicted(model, batch):
    return np.asarray(model.objectives["masked_patches"].predict(model.context(batch))[0])


@pytest.mark.parametrize(("target", "norm", "power"), [("hog", "l2", 2), ("hog", "l1", 1), ("pixels", "l2", 2)])
def test_the_loss_is_the_naive_mean_over_masked_patches(batch, target, norm, power):
    names = {"objectives__masked_patches__target": target, "objectives__masked_patches__norm": norm}
    model = build(**names)
    masked = batch["image_masked"]
    assert masked.sum(axis=1).tolist() == [12] * len(masked)
    if target == "hog":
        wanted = np.stack([numpy_hog.of_patches(image, PATCH, 2) for image in batch["image"]])
    else:
        wanted = np.asarray(patchify(batch["image"], PATCH))
    pred = np.zeros_like(wanted)
    pred[masked] = predicted(model, batch).reshape(-1, wanted.shape[-1])  # masked patches are in order
    found = model(batch, jax.random.key(0))
    np.testing.assert_allclose(found.loss, numpy_hog.masked_loss(pred, wanted, masked, power), rtol=1e-4)
    assert found.metrics.keys() == {"loss", "masked_patches/loss"}


def test_hidden_pixels_are_seen_by_the_target_alone_and_words_by_nobody(model, batch):
    other = with_hidden_pixels(batch)
    np.testing.assert_array_equal(predicted(model, other), predicted(model, batch))
    losses = [model(one, jax.random.key(0)).loss for one in (batch, other, with_hidden_words(batch))]
    assert losses[0] != losses[1] and losses[0] == losses[2]
    shown = np.array(batch["image"])
    shown[~np.repeat(np.repeat(batch["image_masked"].reshape(-1, 4, 4), PATCH, 1), PATCH, 2)] += 1.0
    assert not np.allclose(predicted(model, batch | {"image": shown}), predicted(model, batch))


def test_a_hidden_patch_is_a_patch_of_the_learned_colour(model, batch):
    encoder = model.vlm.image_encoder
    assert encoder.mask_token.shape == (1, 1, 3)
    hidden = np.repeat(np.repeat(batch["image_masked"].reshape(-1, 4, 4), PATCH, 1), PATCH, 2)
    painted = np.where(hidden[..., None], np.asarray(encoder.mask_token[...]), batch["image"])
    found = encoder(jnp.asarray(batch["image"]), jnp.asarray(batch["image_masked"]))
    np.testing.assert_allclose(found, encoder(jnp.asarray(painted)), rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(encoder(jnp.asarray(batch["image"])), model.context(batch).image("clean"))


def test_the_colour_learns_as_if_it_were_painted(model, batch):
    graphdef, params = split_model(model.vlm.image_encoder)
    hidden = jnp.repeat(jnp.repeat(batch["image_masked"].reshape(-1, 4, 4), PATCH, 1), PATCH, 2)[..., None]

    def given(params):
        return jnp.sum(jnp.sin(nnx.merge(graphdef, params)(batch["image"], batch["image_masked"])))

    def painted(params):
        image = jnp.where(hidden, params["mask_token"], batch["image"])
        return jnp.sum(jnp.sin(nnx.merge(graphdef, params)(image)))

    toy.assert_trees_close(jax.grad(given)(params), jax.grad(painted)(params), tolerance=1e-4)


def test_positions_read_one_by_one_are_those_of_the_whole_picture(model, batch):
    ctx, objective = model.context(batch), model.objectives["masked_patches"]
    whole = objective.to_target(objective.decoder(objective.to_decoder(ctx.image("masked")), None))[:, 1:]
    expected = np.take_along_axis(np.asarray(whole), np.asarray(ctx.masked_patches.ids_BM)[:, :, None], axis=1)
    np.testing.assert_allclose(predicted(model, batch), expected, rtol=2e-5, atol=2e-5)


def test_every_parameter_learns_and_there_is_none_that_reads_text(model, batch):
    graphdef, params = split_model(model)
    gradients = toy.by_path(jax.grad(lambda p: nnx.merge(graphdef, p)(batch, jax.random.key(0)).loss)(params))
    # A bias of keys moves all weights of a query alike.
    still = {path for path, value in gradients.items() if not np.any(np.abs(value) > 1e-9)}
    assert all(path.endswith("key/bias") for path in still)
    assert {path.split("/")[1] for path in gradients} == {"image_encoder", "masked_patches"}


def test_the_paper_s_size_hides_48_of_64_patches():
    config = pretrain.get_config("recipe=fastmim,size=base,data=coco")
    assert (config.model.image.image_size, config.model.image.patch) == (128, 16)
    assert builds.model_arguments(config)["masked_patch_count"] == 48
    sizes = builds.parameter_sizes(config)
    assert sizes["objectives/masked_patches/to_target/bias"] == 108


@pytest.mark.parametrize("size", ["tiny", "mini", "small", "large", "encoders"])
def test_pictures_are_small_and_whole_patches_that_others_tell_of(size):
    image = pretrain.get_config(f"recipe=fastmim,size={size}").model.image
    grid, other = image.image_size // image.patch, pretrain.get_config(f"size={size}").model.image
    assert image.image_size % image.patch == 0 and image.patch % 8 == 0 and grid >= 4
    assert image.image_size < other.image_size or size in ("tiny", "encoders")
