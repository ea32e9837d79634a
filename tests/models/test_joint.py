"""Fusion in one stream: positions are read where they belong, and what is hidden is seen by nobody."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.models.layers import Positions, restore
from maskvlm_jax.models.vision import ConvDecoder, ConvEmbedding, patchify, unpatchify
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.settings import rules as configs
from maskvlm_jax.training.build import model_arguments
from maskvlm_jax.training.train_step import split_model
from tests.conftest import toy_config
from tests.reference import toy

SIDE, PATCH = 16, 4
SIZES = {
    "batch_size": 4,
    "model__image__image_size": SIDE,
    "model__image__patch": PATCH,
    "model__text__max_length": toy.LENGTH,
    "model__text__vocab_size": toy.VOCAB,
    "model__fusion__depth": 2,
    "masking__image_cell": 1,
}


def build(recipe: str) -> Learner:
    """A recipe's model at toy size, random parameters."""
    values = {name: value for name, value in SIZES.items() if recipe != "clip" or "fusion" not in name}
    config = toy_config(f"recipe={recipe}", **values)
    configs.check(config)
    return toy.randomised(lambda: Learner(**model_arguments(config), rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def models():
    return {recipe: build(recipe) for recipe in ("mamo", "mlim", "m3ae")}


def batch_for(model: Learner, size: int = 3) -> dict[str, np.ndarray]:
    """A batch with as many masked patches and words as the model expects."""
    rng, batch = np.random.default_rng(1), toy.batch(size)
    word = batch["token_valid"] & (batch["tokens"] >= toy.FIRST_WORD)
    count = np.ceil(model.text_ratio * word.sum(axis=1)).astype(int)[:, None]
    order = np.argsort(np.where(word, rng.random(word.shape), 2.0), axis=1).argsort(axis=1)
    text_masked = order < count
    return batch | {
        "image_masked": rng.random((size, toy.PATCHES)).argsort(axis=1) < model.masked_patch_count,
        "text_masked": text_masked,
        "tokens_masked": np.where(text_masked, toy.MASK, batch["tokens"]).astype(np.int32),
    }


def with_hidden_pixels(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Noise in the place of every masked patch."""
    patches = np.array(patchify(batch["image"], PATCH))
    patches[batch["image_masked"]] = np.random.default_rng(5).normal(size=patches[batch["image_masked"]].shape)
    return batch | {"image": np.asarray(unpatchify(patches, PATCH))}


def with_hidden_words(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Another word in the place of every masked one, in the clean view and in the masked one."""
    other = np.where(batch["text_masked"], toy.VOCAB - 1, batch["tokens"]).astype(np.int32)
    return batch | {"tokens": other, "tokens_masked": np.where(batch["text_masked"], other, batch["tokens_masked"])}


def test_restored_positions_are_those_that_were_taken():
    rng = np.random.default_rng(0)
    full = rng.normal(size=(2, 5, 3)).astype(np.float32)
    ids, valid = np.array([[0, 3, 4], [1, 2, 0]]), np.array([[1, 1, 1], [1, 1, 0]], bool)
    visible = np.take_along_axis(full, ids[:, :, None], axis=1)
    token = np.full(3, 9, np.float32)
    restored = np.asarray(restore(visible, Positions(ids, valid), 5, token))
    shown = np.array([[1, 0, 0, 1, 1], [0, 1, 1, 0, 0]], bool)
    np.testing.assert_array_equal(restored[shown], full[shown])
    assert np.all(restored[~shown] == 9)


@pytest.mark.parametrize("recipe", ["mamo", "mlim", "m3ae"])
def test_positions_read_one_by_one_are_those_of_the_whole_sequence(models, recipe):
    model = models[recipe]
    ctx = model.context(batch_for(model))
    offset = model.vlm.image_encoder.prefix
    image, text = ctx.fuse_image("masked", "clean"), ctx.fuse_text("masked", "clean")
    assert image.shape[1] == toy.PATCHES
    for part, ids, read in (
        (image, ctx.masked_patches.ids_BM, ctx.fuse_image("masked", "clean", ctx.masked_patches.ids_BM + offset)),
        (text, ctx.masked_tokens.ids_BM, ctx.fuse_text("masked", "clean", ctx.masked_tokens.ids_BM)),
    ):
        expected = np.take_along_axis(np.asarray(part), np.asarray(ids)[:, :, None], axis=1)
        np.testing.assert_allclose(read, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("recipe", ["mamo", "mlim", "m3ae"])
def test_pairs_are_those_of_the_pair_alone(models, recipe):
    model = models[recipe]
    batch = jax.tree.map(jnp.asarray, batch_for(model))
    ctx = model.context(batch)
    pairs = toy.fuse_pairs(ctx, jnp.array([0, 2, 1]), jnp.array([0, 0, 2]))
    for pair, i, t in zip(pairs, (0, 2, 1), (0, 0, 2), strict=True):
        own = {name: i if name.startswith("image") else t for name in batch}
        alone = {name: value[own[name], None] for name, value in batch.items()}
        one = [jnp.array([0])] * 2
        np.testing.assert_allclose(toy.fuse_pairs(model.context(alone), *one)[0], pair, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("recipe", ["mamo", "mlim", "m3ae"])
def test_no_prediction_sees_a_hidden_pixel_or_word(models, recipe):
    model = models[recipe]
    batch = batch_for(model)
    other = "clean" if recipe == "mamo" else "masked"

    def fused(batch):
        ctx = model.context(batch)
        return np.asarray(ctx.fuse_masked_patches(other)), np.asarray(ctx.fuse_masked_tokens(other))

    patches, words = fused(batch)
    noisy_patches, noisy_words = fused(with_hidden_pixels(batch))
    np.testing.assert_array_equal(noisy_patches, patches)
    assert np.array_equal(noisy_words, words) == (other == "masked")
    # MAMO's masked picture reads the whole caption; where both are masked, neither reads a hidden word.
    ctx = model.context(with_hidden_words(batch) | {"tokens_masked": batch["tokens_masked"]})
    np.testing.assert_array_equal(ctx.fuse_masked_tokens(other), words)
    assert np.array_equal(ctx.fuse_masked_patches(other), patches) == (other == "masked")


def test_the_autoencoder_drops_what_is_hidden_whatever_stands_there(models):
    model = models["m3ae"]
    batch = batch_for(model)
    plain, changed = (model.context(b) for b in (batch, with_hidden_words(with_hidden_pixels(batch))))
    for name in ("fuse_masked_patches", "fuse_masked_tokens"):
        np.testing.assert_array_equal(getattr(plain, name)("masked"), getattr(changed, name)("masked"))


def test_dropped_patches_leave_the_encoder_as_if_only_the_visible_ones_were_there(models):
    """Against blocks run over the visible patches of one picture at a time."""
    model = models["mamo"]
    encoder, batch = model.vlm.image_encoder, batch_for(model)
    encoded = np.asarray(model.context(batch).image("masked"))
    for row, hidden in enumerate(batch["image_masked"]):
        x = encoder.patch_embedding(batch["image"][[row]]) + encoder.position[...][:, 1:]
        x = jnp.concatenate([encoder.class_token[...] + encoder.position[...][:, :1], x[:, ~hidden]], axis=1)
        for layer in range(encoder.blocks.depth):
            x = encoder.blocks.layer(layer)(x)
        shown = np.concatenate([[True], ~hidden])
        np.testing.assert_allclose(encoded[row][shown], encoder.norm(x)[0], rtol=2e-5, atol=2e-5)
        token = encoder.mask_token[...][0] + encoder.position[...][0, 1:][hidden]
        np.testing.assert_allclose(encoded[row][~shown], token, rtol=1e-6)


def test_every_pixel_feeds_one_embedding_of_the_shallow_cnn():
    embed = toy.randomised(lambda: ConvEmbedding(4, 8, channels=4, init_std=0.0, dtype="float32", rngs=nnx.Rngs(0)))
    image = np.random.default_rng(0).normal(size=(1, 12, 12, 3)).astype(np.float32)
    changed = image.copy()
    changed[0, 5, 9] += 1  # row 5, column 9: patch 1 * 3 + 2
    difference = np.abs(np.asarray(embed(changed)) - np.asarray(embed(image))).max(axis=-1)[0]
    assert np.flatnonzero(difference).tolist() == [5]


def test_the_decoder_of_patches_puts_pixels_where_patchify_finds_them():
    """With weights that pass on the brightness of each of the four quarters."""
    decoder = ConvDecoder(2, 4, channels=1, init_std=0.0, dtype="float32", rngs=nnx.Rngs(0))
    decoder.layers[0].kernel[...] = 10 * jnp.eye(4)
    decoder.out.kernel[...] = jnp.ones((1, 3))
    x = np.arange(1.0, 5.0, dtype=np.float32)[None, None]
    np.testing.assert_allclose(decoder(x)[0, 0].reshape(2, 2, 3)[..., 0], [[10, 20], [30, 40]], rtol=1e-4)


def test_pictures_and_words_share_one_mask_embedding(models):
    graphdef, params = split_model(models["mlim"])
    batch = batch_for(models["mlim"])

    def loss(embedding):
        model = nnx.merge(graphdef, params)
        model.vlm.text_encoder.embedding[...] = embedding
        return jnp.sum(model.context(batch).image("masked") ** 2)

    grads = np.asarray(jax.grad(loss)(params["vlm"]["text_encoder"]["embedding"]))
    assert models["mlim"].vlm.text_encoder.mask_id == -1, "no tokenizer: the last token of the vocabulary"
    assert np.flatnonzero(np.any(grads, axis=1)).tolist() == [len(grads) - 1]
    assert "mask_token" not in params["vlm"]["image_encoder"]


def test_targets_have_no_gradient_and_the_teacher_no_part_in_the_parameters(models):
    model = models["mamo"]
    graphdef, params = split_model(model)
    batch, key = jax.tree.map(jnp.asarray, batch_for(model)), jax.random.key(0)

    def loss(params, ema):
        return nnx.merge(graphdef, params)(batch, key, teacher=nnx.merge(graphdef, jax.lax.stop_gradient(ema))).loss

    grad = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, params)
    own, teacher = grad.compile({"xla_backend_optimization_level": 0})(params, params)
    assert not any(np.any(x) for x in jax.tree.leaves(teacher))
    assert any(np.any(x) for x in jax.tree.leaves(own))


def test_a_model_without_a_moving_average_has_no_teacher(models):
    with pytest.raises(ValueError, match="no moving average"):
        _ = models["mamo"].context(batch_for(models["mamo"])).teacher
