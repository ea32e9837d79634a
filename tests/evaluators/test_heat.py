"""Heat is the derivative of the score by the weights of attention, and the oracle's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.evaluators import heat as heats
from maskvlm_jax.objectives.base import ScoresPairs
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.serving import functions
from maskvlm_jax.settings import rules
from maskvlm_jax.training.build import model_arguments
from tests.conftest import toy_config
from tests.models.test_joint import SIZES, batch_for
from tests.reference import numpy_heat, toy

RECIPES = ("maskvlm", "albef", "m3ae", "eve")  # two streams, one, a joint sequence, experts
DEPTH = 3
LAYERS = (1, DEPTH - 1)
MATCHING = {"name": "matching", "weight": 1.0, "negatives": "random"}


def config_of(recipe, depth=DEPTH, **values):
    config = toy_config(f"recipe={recipe}", **(SIZES | {"model__fusion__depth": depth} | values))
    if "matching" not in config.objectives:
        config.objectives.matching = MATCHING
    if recipe == "eve":  # a difference must not choose other experts
        config.model.fusion.experts.top = config.model.fusion.experts.count
    return config


def learner_of(config):
    return toy.randomised(lambda: Learner(**model_arguments(config), rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module", params=(*RECIPES, pytest.param("m3ae_med", marks=pytest.mark.slow)))
def model(request):
    learner = learner_of(config_of(request.param))
    return learner, batch_for(learner)


def parts(learner, batch):
    ctx = learner.context(batch)
    return ctx, learner.vlm.fusion, ctx.image_side(), ctx.text_side()


def nothing(learner, batch):
    rows, length = batch["tokens"].shape
    return jnp.zeros((rows, learner.vlm.fusion.heads, length, learner.vlm.image_encoder.patches))


def test_a_probe_of_zeros_changes_neither_score_nor_weights(model):
    learner, batch = model

    @jax.jit
    def both(batch):
        ctx, fusion, image, text = parts(learner, batch)
        probed = [fusion.probed(image, text, layer, nothing(learner, batch)) for layer in range(DEPTH)]
        odds = [learner.offering(ScoresPairs).log_odds(pair_BD) for pair_BD, _ in probed]
        weights = [(weights, ctx.attention(layer).text_BHLN) for layer, (_, weights) in enumerate(probed)]
        return functions.log_odds(learner, batch), odds, weights

    expected, odds, weights = both(batch)
    for found in odds:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    kept = np.broadcast_to(batch["token_valid"][:, None, :, None], weights[0][0].shape)
    for found, there in weights:
        np.testing.assert_allclose(np.asarray(found)[kept], np.asarray(there)[kept], rtol=1e-5, atol=1e-7)


def test_heat_is_weights_times_what_finite_differences_say(model):
    learner, batch = model
    directions = np.random.default_rng(0).normal(size=(3, *nothing(learner, batch).shape)).astype(np.float32)

    @jax.jit
    def of_layers(batch, directions):
        found = []
        for layer in LAYERS:

            def score(added, layer=layer):
                _, fusion, image, text = parts(learner, batch)  # anew: a side keeps what one trace makes of it
                return jnp.sum(learner.offering(ScoresPairs).log_odds(fusion.probed(image, text, layer, added)[0]))

            ends = jax.lax.map(score, jnp.concatenate([2e-2 * directions, -2e-2 * directions])).reshape(2, -1)
            gradient = jax.grad(score)(jnp.zeros_like(directions[0]))
            weights = learner.context(batch).attention(layer).text_BHLN
            found.append(((ends[0] - ends[1]) / 4e-2, gradient, weights, heats.heat_of(layer)(learner, batch)))
        return found

    valid = batch["token_valid"]
    for layer, (along, gradient, weights, found) in zip(LAYERS, of_layers(batch, directions), strict=True):
        np.testing.assert_allclose(along, np.sum(directions * gradient, axis=(1, 2, 3, 4)), rtol=3e-2, atol=3e-2)
        expected = (weights * np.maximum(gradient, 0)).mean(axis=1) * valid[:, :, None]
        np.testing.assert_allclose(found.word_BLN, expected, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(found.text_BN, expected.sum(1) / valid.sum(1, keepdims=True), rtol=1e-3, atol=1e-6)
        assert np.any(np.asarray(found.word_BLN)[:, 1] > 0) == (layer < DEPTH - 1), (
            "the last has only the start token's"
        )


def parameters(module):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(module, nnx.Param)))


@pytest.mark.parametrize(
    ("recipe", "norm", "layer"), [("maskvlm", "pre", 0), ("albef", "post", 1), ("maskvlm", "post", 1)]
)
def test_heat_is_that_of_the_oracle(recipe, norm, layer):
    config = config_of(recipe, 2, model__fusion__norm=norm)
    if recipe == "maskvlm":
        config.objectives.masked_image.decoder.norm = norm
    learner = learner_of(config)
    batch = batch_for(learner, 2)
    ctx, fusion, _, _ = parts(learner, batch)
    image, text = (np.asarray(x, np.float64) for x in (ctx.image("clean"), ctx.text("clean")))
    options = {"depth": 2, "heads": fusion.heads, "eps": config.model.fusion.eps, "pre": norm == "pre"}
    head, of_fusion = parameters(learner.offering(ScoresPairs))["to_match"], parameters(fusion)
    found = heats.heat_of(layer)(learner, batch)
    for i, real in enumerate(batch["token_valid"]):
        whole = np.ones(len(image[i]), bool)
        other = 1.0
        if fusion.image_stream:
            other, _ = numpy_heat.cross_stack(of_fusion["image_stream"], image[i], whole, text[i], real, **options)

        def stream(added, i=i, real=real, whole=whole):
            p = of_fusion["text_stream"]
            return numpy_heat.cross_stack(p, text[i], real, image[i], whole, **options, probe=layer, added=added)

        def score(added, other=other, stream=stream):
            logits = (stream(added)[0] * other) @ head["kernel"] + head["bias"]
            return logits[1] - logits[0]

        word_LN = numpy_heat.heat(score, stream(0.0)[1], real, fusion.prefix)
        np.testing.assert_allclose(found.score_B[i], score(0.0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.word_BLN[i], word_LN, rtol=2e-3, atol=1e-6)
        np.testing.assert_allclose(found.text_BN[i], word_LN.sum(0) / real.sum(), rtol=2e-3, atol=1e-6)


def test_one_block_has_heat_of_the_start_token():
    learner = learner_of(config_of("maskvlm", 1))
    found = heats.heat_of(0)(learner, batch_for(learner))
    assert np.asarray(found.text_BN).max(axis=1).min() > 0 and not np.asarray(found.word_BLN)[:, 1:].any()


@pytest.mark.parametrize("layer", [0, 1])
def test_without_a_matching_head_it_is_of_the_class_token_and_the_cosine(layer):
    values = {name: value for name, value in SIZES.items() if "fusion" not in name}
    config = toy_config("recipe=clip", model__image__depth=2, **values)
    learner = learner_of(config)
    batch = batch_for(learner)
    encoder, ctx = learner.vlm.image_encoder, learner.context(batch)
    zeros = jnp.zeros((len(batch["tokens"]), encoder.heads, encoder.patches))
    image_BSD, weights_BHN = encoder.probed(ctx.pixels_BYXC, layer, zeros)
    np.testing.assert_allclose(image_BSD, ctx.image("clean"), rtol=1e-5, atol=1e-5)
    found = heats.heat_of(layer)(learner, batch)
    np.testing.assert_allclose(found.score_B, functions.cosines(learner, batch), rtol=1e-4, atol=1e-5)
    assert found.word_BLN.shape == (3, 0, encoder.patches)

    def score(added):
        image_BE = learner.vlm.embed_image(encoder.probed(ctx.pixels_BYXC, layer, added)[0])
        return jnp.sum(image_BE * ctx.text_embedding_BE)

    gradient = jax.grad(score)(zeros)
    direction = np.random.default_rng(0).normal(size=zeros.shape).astype(np.float32)
    along = (score(1e-2 * direction) - score(-1e-2 * direction)) / 2e-2
    np.testing.assert_allclose(along, np.sum(direction * gradient), rtol=3e-2, atol=1e-3)
    np.testing.assert_allclose(found.text_BN, (weights_BHN * np.maximum(gradient, 0)).mean(1), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("recipe", ["m3ae", "mlim"])
def test_a_model_without_any_score_has_one_clear_line(recipe):
    config = toy_config(f"recipe={recipe}")
    with pytest.raises(UserError, match="no heat over pictures: it needs a matching head, which configs/finetune_ret"):
        heats.layers_of(config, rules.active_objectives(config))


def test_layers_are_counted_from_either_end():
    layers = heats.Layers(3, "cosine")
    assert [layers.number(i) for i in (0, 2, -1, -3)] == [0, 2, 2, 0] and layers.default == 1
    assert heats.Layers(1, "cosine").default == 0
    with pytest.raises(UserError, match="there is no layer 3; give one from 0 to 2"):
        layers.number(3)


@pytest.mark.parametrize("size", [(7, 9), (3, 3), (32, 20)])
def test_heat_is_resized_as_the_oracle_does(size):
    cells = np.random.default_rng(0).random((3, 3)).astype(np.float32)
    np.testing.assert_allclose(heats.resized(cells.reshape(-1), *size), numpy_heat.bicubic(cells, *size), atol=1e-5)
