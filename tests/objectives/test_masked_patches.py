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
CELLS = {"objectives__masked_patches__cell": 2, "objectives__masked_patches__least": 0}


def build(**values) -> Learner:
    config = toy_config("recipe=fastmim", **PICTURES | DECODER | CELLS | values)
    rules.check(config)
    return toy.randomised(lambda: Learner(**builds.model_arguments(config), rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def batch(model):
    return batch_for(model)


def compiled(model):
    """batch -> predictions and loss."""
    return jax.jit(
        lambda batch: (
            model.objectives["masked_patches"].predict(model.context(batch))[0],
            model(batch, jax.random.key(0)).loss,
        )
    )


@pytest.fixture(scope="module")
def run(model):
    return compiled(model)


OTHERS = [("hog", "l1", 1), ("pixels", "l2", 2)]


@pytest.mark.parametrize(
    ("target", "norm", "power"), [("hog", "l2", 2), *(pytest.param(*one, marks=pytest.mark.slow) for one in OTHERS)]
)
def test_the_loss_is_the_naive_mean_over_masked_patches(run, batch, target, norm, power):
    if (target, norm) != ("hog", "l2"):
        names = {"objectives__masked_patches__target": target, "objectives__masked_patches__norm": norm}
        run = compiled(build(**names))
    masked = batch["image_masked"]
    assert masked.sum(axis=1).tolist() == [12] * len(masked)
    if target == "hog":
        wanted = np.stack([numpy_hog.of_patches(image, PATCH, 2) for image in batch["image"]])
    else:
        wanted = np.asarray(patchify(batch["image"], PATCH))
    pred, (predictions, loss) = np.zeros_like(wanted), run(batch)
    pred[masked] = predictions.reshape(-1, wanted.shape[-1])  # masked patches are in order
    np.testing.assert_allclose(loss, numpy_hog.masked_loss(pred, wanted, masked, power), rtol=1e-4)


def test_hidden_pixels_are_seen_by_the_target_alone_and_words_by_nobody(run, batch):
    shown = np.array(batch["image"])
    shown[~np.repeat(np.repeat(batch["image_masked"].reshape(-1, 4, 4), PATCH, 1), PATCH, 2)] += 1.0
    batches = batch, with_hidden_pixels(batch), with_hidden_words(batch), batch | {"image": shown}
    plain, hidden, words, visible = (run(one) for one in batches)
    np.testing.assert_array_equal(hidden[0], plain[0])
    assert plain[1] != hidden[1] and plain[1] == words[1]
    assert not np.allclose(visible[0], plain[0])


def test_a_hidden_patch_is_a_patch_of_the_learned_colour(model, batch):
    encoder = model.vlm.image_encoder
    assert encoder.mask_token.shape == (1, 1, 3)
    hidden = np.repeat(np.repeat(batch["image_masked"].reshape(-1, 4, 4), PATCH, 1), PATCH, 2)
    graphdef, params = split_model(encoder)

    def given(params):
        return jnp.sum(jnp.sin(nnx.merge(graphdef, params)(batch["image"], batch["image_masked"])))

    def seen(params):
        image = jnp.where(hidden[..., None], params["mask_token"], batch["image"])
        return jnp.sum(jnp.sin(nnx.merge(graphdef, params)(image)))

    both = jax.jit(lambda params: (jax.value_and_grad(given)(params), jax.value_and_grad(seen)(params)))
    found, expected = both(params)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    toy.assert_trees_close(found[1], expected[1], tolerance=1e-4)


def test_positions_read_one_by_one_are_those_of_the_whole_picture(model, run, batch):
    def whole(batch):
        ctx, objective = model.context(batch), model.objectives["masked_patches"]
        decoded_BSD = objective.decoder(objective.to_decoder(ctx.image("masked")), None)
        return objective.to_target(decoded_BSD)[:, 1:], ctx.masked_patches.ids_BM

    pred_BNF, ids_BM = jax.device_get(jax.jit(whole)(batch))
    expected = np.take_along_axis(pred_BNF, ids_BM[:, :, None], axis=1)
    np.testing.assert_allclose(run(batch)[0], expected, rtol=2e-5, atol=2e-5)


def test_every_parameter_learns_and_there_is_none_that_reads_text(model, batch):
    graphdef, params = split_model(model)
    gradient = jax.jit(jax.grad(lambda p: nnx.merge(graphdef, p)(batch, jax.random.key(0)).loss))
    gradients = toy.by_path(gradient(params))
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
