"""The stream of experts: what is read where, what is seen of a masked picture, and what it is without its experts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.models import auxiliary
from maskvlm_jax.models.joint import join
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import rules
from maskvlm_jax.training.build import model_arguments
from tests.conftest import toy_config
from tests.models.test_joint import SIZES, batch_for, with_hidden_pixels, with_hidden_words
from tests.reference import toy

DEPTH = 4
ALL = SIZES | {"model__fusion__depth": DEPTH}


def build(**values) -> Learner:
    config = toy_config("recipe=eve", **(ALL | values))
    rules.check(config)
    return toy.randomised(lambda: Learner(**model_arguments(config), rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def batch(model):
    return batch_for(model)


def predictions(model, batch):
    ctx = model.context(batch)
    return [np.asarray(model.objectives[name].predict(ctx)[0]) for name in ("masked_image", "masked_text")]


def test_masked_pixels_are_seen_by_the_pass_of_words_alone_and_masked_words_by_that_of_pixels(model, batch):
    pixels, words = predictions(model, batch)
    other_pixels, other_words = predictions(model, with_hidden_pixels(batch))
    np.testing.assert_array_equal(other_pixels, pixels)
    assert not np.array_equal(other_words, words)
    hidden = with_hidden_words(batch) | {"tokens_masked": batch["tokens_masked"]}
    other_pixels, other_words = predictions(model, hidden)
    assert not np.array_equal(other_pixels, pixels)
    np.testing.assert_array_equal(other_words, words)


def test_positions_read_one_by_one_are_those_of_the_whole_sequence(model, batch):
    ctx = model.context(batch)
    patches, tokens = ctx.masked_patches.ids_BM, ctx.masked_tokens.ids_BM
    for part, ids, read in (
        (ctx.fuse_image("masked", "clean"), patches, ctx.fuse_masked_patches("clean")),
        (ctx.fuse_text("masked", "clean"), tokens, ctx.fuse_masked_tokens("clean")),
        (ctx.fuse_image("clean", "clean"), patches, ctx.fuse_image("clean", "clean", patches)),
    ):
        expected = np.take_along_axis(np.asarray(part), np.asarray(ids)[:, :, None], axis=1)
        np.testing.assert_allclose(read, expected, rtol=2e-5, atol=2e-5)


def test_pairs_are_those_of_the_pair_alone(model, batch):
    ctx = model.context(jax.tree.map(jnp.asarray, batch))
    pairs = toy.fuse_pairs(ctx, [0, 2, 1], [0, 0, 2])
    np.testing.assert_allclose(pairs[0], np.asarray(ctx.fuse_text("clean", "clean"))[0, 0], rtol=2e-5, atol=2e-5)
    for pair, i, t in zip(pairs, (0, 2, 1), (0, 0, 2), strict=True):
        alone = {name: value[[i if name.startswith("image") else t]] for name, value in batch.items()}
        np.testing.assert_allclose(toy.fuse_pairs(model.context(alone), [0], [0])[0], pair, rtol=2e-5, atol=2e-5)


def test_layers_follow_each_other_by_modality_first_and_routed_last(model, batch):
    ctx, encoder = model.context(batch), model.vlm.fusion.encoder
    text, image = ctx.text_side(), ctx.image_side()
    x, valid = join(text.sequence_BSD, text.valid_BS, image.sequence_BSD, image.valid_BS)
    words = text.sequence_BSD.shape[1]
    x = encoder.norm_before(x)
    for stack in (encoder.lower_blocks, encoder.routed_blocks):
        assert stack.depth == 2
        for layer in range(2):
            x = stack.layer(layer)(x, valid, words=words, read_words=words)
    x = encoder.norm(x)
    found = ctx.fused("clean", "clean")
    np.testing.assert_allclose(found.text(), x[:, :words], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.image(), x[:, words:], rtol=1e-4, atol=1e-5)
    assert ctx.attention(-1).text_BHLN.shape == (len(batch["tokens"]), 2, words, toy.PATCHES)


def test_every_routed_layer_of_both_passes_hands_out_all_positions(model, batch):
    with auxiliary.collecting() as values:
        predictions(model, batch)
    shown = toy.PATCHES - model.masked_patch_count
    lengths = [toy.LENGTH + shown] * 2 + [toy.LENGTH + toy.PATCHES] * 2
    layers = [layer for stack in values["router"] for layer in stack]
    assert [layer.shape for layer in layers] == [(len(batch["tokens"]), length, 4) for length in lengths]
    for routed in values["routed"]:
        np.testing.assert_array_equal(routed[0, :, : toy.LENGTH], batch["token_valid"])
        assert np.all(routed[0, :, toy.LENGTH :])


def test_padded_words_change_no_prediction_and_no_balance(model, batch):
    tokens = np.where(batch["token_valid"], batch["tokens"], toy.VOCAB - 1).astype(np.int32)
    masked = np.where(batch["token_valid"], batch["tokens_masked"], toy.VOCAB - 1).astype(np.int32)
    changed = batch | {"tokens": tokens, "tokens_masked": masked}
    assert np.any(tokens != batch["tokens"])
    plain, other = (model(b, jax.random.key(0)).metrics for b in (batch, changed))
    for name, value in plain.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-6, err_msg=name)


def test_the_balance_counts_in_the_loss_by_its_weight_and_trains_the_router(model, batch):
    output = model(batch, jax.random.key(0))
    weights = dict(model.weights)
    total = sum(weights[label] * output.metrics[f"{label}/loss"] for label in weights)
    np.testing.assert_allclose(output.loss, total, rtol=1e-6)
    assert weights["load_balance"] == 0.001 and 1 <= output.metrics["load_balance/loss"] <= 4


def test_shared_layers_below_are_a_plain_stream(batch):
    model = build(model__fusion__experts__layers=0, model__fusion__experts__lower="shared")
    paths = toy.by_path(nnx.to_pure_dict(nnx.split(model.vlm.fusion.encoder)[1]))
    assert not any("text" in path or "experts" in path for path in paths)
    parts = build(model__fusion__experts__layers=0)
    assert any("feed_forward/text" in path for path in toy.by_path(nnx.to_pure_dict(nnx.split(parts)[1])))
    for one in (model, parts):
        assert np.isfinite(predictions(one, batch)[0]).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model__fusion__experts__layers": 5}, r"experts\.layers 5 is more than model\.fusion\.depth 4"),
        ({"model__fusion__experts__top": 9}, r"experts\.top 9 is more than their number, count 4"),
        ({"model__fusion__experts__lower": "both"}, r"experts\.lower is 'both'; choose among modality, shared"),
        ({"model__fusion__decoder__depth": 0}, r"fusion\.decoder\.depth is 0; give at least 1"),
        ({"model__fusion__block_kind": "dense"}, r"block_kind: there is no block by modality 'dense'; .* experts"),
        ({"model__image__kind": "experts"}, r"image\.kind: there is no block 'experts'"),
        ({"model__image__hidden": "token"}, r"hidden=token does not go with model\.fusion\.kind=experts"),
        ({"masking__policy": "modality_aware", "masking__light_ratio": 0.1}, "only masks of an exact count"),
    ],
)
def test_what_does_not_fit_together_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        rules.check(toy_config("recipe=eve", **(ALL | values)))


def test_heads_that_do_not_share_the_decoder_s_width_are_refused():
    config = toy_config("recipe=eve", **ALL)
    with config.unlocked():
        config.model.fusion.decoder.width, config.model.fusion.decoder.heads = 10, 4
    with pytest.raises(UserError, match=r"decoder\.heads 4 does not divide its width 10"):
        rules.check(config)


def test_whole_words_may_be_masked_as_none_is_dropped():
    rules.check(toy_config("recipe=eve", **(ALL | {"masking__whole_word": True})))
