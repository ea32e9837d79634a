"""Streams that read each other: numbers of every level, what is read where, and what learns of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.models.block import BlockSpec
from maskvlm_jax.models.co import CoFusion
from maskvlm_jax.models.fusion import Lengths
from maskvlm_jax.models.layers import Positions
from maskvlm_jax.models.positions import grid_waves
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import rules
from maskvlm_jax.training.build import model_arguments
from maskvlm_jax.training.train_step import split_model
from tests.conftest import toy_config
from tests.models.test_joint import SIZES, batch_for, with_hidden_pixels, with_hidden_words
from tests.reference import numpy_co, toy

B, PREFIX, N, L, WIDTH, HEADS = 2, 1, 4, 5, 8, 2
SHOWN = np.array([[0, 3], [1, 2]])
REAL = np.array([5, 3])
UNOPTIMISED = {"xla_backend_optimization_level": 0}
RNG = np.random.default_rng(0)
IMAGE, TEXT = (RNG.normal(size=(B, length, WIDTH)).astype(np.float32) for length in (PREFIX + N, L))
OTHER = np.array([[0, 0, 1], [0, 1, 0]])  # pictures, captions


def fusion(norm: str, depth: int, tap: int, **changes) -> CoFusion:
    spec = BlockSpec(WIDTH, HEADS, mlp_ratio=2, norm=norm, **toy.shared(**changes))
    decoder = {"norm": "pre", "activation": "quick_gelu", "depth": 2, "width": 12, "heads": 2}
    lengths = Lengths(PREFIX, N, L)
    return toy.randomised(lambda: CoFusion(spec, lengths, depth=depth, tap=tap, decoder=decoder, rngs=nnx.Rngs(0)))


def sides(model: CoFusion):
    """Of whole pictures and captions, and of pictures of which the visible patches alone were encoded."""
    valid = np.arange(L) < REAL[:, None]
    shown = np.concatenate([np.zeros((B, PREFIX), int), PREFIX + SHOWN], axis=1)
    visible = Positions(jnp.asarray(SHOWN), jnp.ones(SHOWN.shape, bool))
    masked = np.take_along_axis(IMAGE, shown[:, :, None], axis=1)
    return model.image_side(IMAGE), model.text_side(TEXT, valid), model.image_side(jnp.asarray(masked), visible)


def outputs(model: CoFusion) -> dict[str, jax.Array]:
    image, text, masked = sides(model)
    whole, hidden = model.fuse(image, text), model.fuse(masked, text)
    pairs = model.pair_image(image).gather(OTHER[0]), model.pair_text(text).gather(OTHER[1])
    maps, nothing = model.attention(image, text, -1), jnp.zeros((B, HEADS, L, N))
    probed = model.probed(image, text, model.depth - 1, nothing)
    return {
        "image": whole.image(),
        "text": whole.text(),
        "words": whole.text(jnp.array([[1, 0], [2, 2]])),
        "decoded": hidden.image(),
        "patches": hidden.image(PREFIX + jnp.array([[1, 2], [3, 0]])),
        "pair": model.match(*pairs),
        "to_patches": maps.text_BHLN,
        "to_words": maps.image_BHNL,
        "probed": probed[0],
        "probed_weights": probed[1],
    }


def parameters(model) -> dict:
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.split(model)[1]))


def expected(p: dict, norm: str, depth: int, tap: int) -> dict[str, np.ndarray]:
    kind, waves, names = numpy_co.Kind(HEADS, norm == "pre"), grid_waves(2, 12), ("image", "text")
    found = {name: [] for name in ("image", "text", "decoded", "to_patches", "to_words")}
    for b in range(B):
        states = numpy_co.streams(p, IMAGE[b], TEXT[b], REAL[b], depth, kind)
        for name, x in zip(names, states[-1], strict=True):
            found[name].append(numpy_co.norm(p[f"{name}_stream"]["norm"], x, kind.eps) if kind.pre else x)
        shown = np.concatenate([IMAGE[b, :PREFIX], IMAGE[b, PREFIX:][SHOWN[b]]])
        tapped = numpy_co.streams(p, shown, TEXT[b], REAL[b], tap, kind)[-1][0]
        found["decoded"].append(numpy_co.decode(p["decoder"], tapped, SHOWN[b].tolist(), waves, PREFIX, kind))
        x, y = states[depth - 1]
        of_image, of_text = (numpy_co.layer_of(p[f"{key}_stream"]["blocks"]["block"], depth - 1) for key in names)
        found["to_patches"].append(numpy_co.co_weights(of_text, y, x, REAL[b], len(x), kind))
        found["to_words"].append(numpy_co.co_weights(of_image, x, y, len(x), REAL[b], kind))
    found = {name: np.stack(arrays) for name, arrays in found.items()}
    found["to_patches"], found["to_words"] = found["to_patches"][..., PREFIX:], found["to_words"][:, :, PREFIX:]
    pairs = []
    for i, t in OTHER.T:
        x, y = numpy_co.streams(p, IMAGE[i], TEXT[t], REAL[t], depth, kind)[-1]
        pairs.append(numpy_co.pair(p, x, y, kind))
    rows = np.arange(B)[:, None]
    words, patches = found["text"][rows, [[1, 0], [2, 2]]], found["decoded"][rows, [[1, 2], [3, 0]]]
    own = np.stack(
        [pairs[0], numpy_co.pair(p, *numpy_co.streams(p, IMAGE[1], TEXT[1], REAL[1], depth, kind)[-1], kind)]
    )
    more = {"words": words, "patches": patches, "pair": np.stack(pairs), "probed": own}
    return found | more | {"probed_weights": found["to_patches"]}


@pytest.mark.parametrize(
    ("norm", "depth", "tap"),
    [("post", 3, 2), ("pre", 2, 2), pytest.param("pre", 1, 1, marks=pytest.mark.slow)]
    + [pytest.param(norm, 3, 0, marks=pytest.mark.slow) for norm in ("pre", "post")],
)
def test_every_level_is_that_of_the_equations(norm, depth, tap):
    model = fusion(norm, depth, tap)
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state: outputs(nnx.merge(graphdef, state))).lower(state).compile(UNOPTIMISED)
    found, wanted = run(state), expected(parameters(model), norm, depth, tap)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        real = np.arange(L) < REAL[:, None] if name == "text" else slice(None)
        np.testing.assert_allclose(np.asarray(found[name])[real], value[real], rtol=2e-4, atol=2e-5, err_msg=name)


def test_layers_above_the_tap_learn_nothing_of_pixels():
    model, key = fusion("post", 3, 2, unroll=False, dropout=0.3), jax.random.key(0)
    graphdef, state = split_model(model)

    def total(state):
        model = nnx.merge(graphdef, state)
        _, text, masked = sides(model)
        return jnp.sum(model.fuse(masked, text, (key, key)).image() ** 2)

    gradients = toy.by_path(jax.jit(jax.grad(total)).lower(state).compile(UNOPTIMISED)(state))

    def learning(stream: str) -> list[bool]:
        """By layer."""
        kernel = gradients[f"{stream}_stream/blocks/block/cross_attention/value/kernel"]
        return [bool(np.any(layer)) for layer in kernel]

    assert learning("image") == [True, True, False]
    assert learning("text") == [True, False, False]
    for path, value in gradients.items():
        assert not ("pooler" in path and np.any(value)), path


ALL = SIZES | {"model__fusion__depth": 4}


def build(**values) -> Learner:
    config = toy_config("recipe=m3ae_med", **(ALL | values))
    rules.check(config)
    return toy.randomised(lambda: Learner(**model_arguments(config), rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("tap", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_neither_loss_sees_what_it_predicts_and_a_tap_at_the_encoder_sees_no_caption(tap):
    model = build(model__fusion__tap=tap, model__image__hidden="left_out")
    batch = batch_for(model)
    graphdef, state = split_model(model)

    def predicted(state, batch):
        learner = nnx.merge(graphdef, state)
        ctx = learner.context(batch)
        heads = learner.objectives
        return heads["masked_image"].predict(ctx)[0], heads["masked_text"].predict(ctx)[0], ctx.image("masked")

    run = jax.jit(predicted).lower(state, batch).compile(UNOPTIMISED)
    pixels, words, encoded = run(state, batch)
    shown = toy.PATCHES - model.masked_patch_count
    assert encoded.shape[1] == 1 + shown and pixels.shape[1] == model.masked_patch_count
    other_pixels, other_words, _ = run(state, with_hidden_pixels(batch))
    np.testing.assert_array_equal(other_pixels, pixels)
    assert not np.array_equal(other_words, words)
    hidden = with_hidden_words(batch) | {"tokens_masked": batch["tokens_masked"]}
    other_pixels, other_words, _ = run(state, hidden)
    assert np.array_equal(other_pixels, pixels) == (tap == 0)
    np.testing.assert_array_equal(other_words, words)
    padded = np.where(batch["token_valid"], batch["tokens"], toy.VOCAB - 1).astype(np.int32)
    other_pixels, _, _ = run(state, batch | {"tokens": padded})
    np.testing.assert_array_equal(other_pixels, pixels)


def test_a_co_fusion_without_a_decoder_goes_with_hidden_patches_that_are_tokens():
    config = toy_config("recipe=m3ae_med", **(ALL | {"model__image__hidden": "token"}))
    with config.unlocked():
        config.model.fusion.decoder = {}
    rules.check(config)
    arguments = model_arguments(config)
    learner = nnx.eval_shape(lambda: Learner(**arguments, rngs=nnx.Rngs(0)))
    assert learner.vlm.fusion.decoder is None and not learner.vlm.fusion.drops


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model__fusion__tap": 5}, r"model\.fusion\.tap 5 is more than model\.fusion\.depth 4"),
        ({"model__fusion__tap": -1}, r"model\.fusion\.tap is -1; give at least 0"),
        ({"model__fusion__decoder__depth": 0}, r"fusion\.decoder\.depth is 0; give at least 1"),
        ({"model__image__hidden": "drop"}, r"hidden=drop does not go with model\.fusion\.kind=co with a decoder"),
        ({"model__fusion__kind": "merged"}, r"fusion\.kind is 'merged'; choose among cross, co, joint"),
        ({"model__fusion__block_kind": "experts"}, r"fusion\.block_kind: there is no cross block 'experts'"),
        ({"model__image__class_token": False}, "which the co fusion reads"),
        ({"masking__policy": "modality_aware", "masking__light_ratio": 0.1}, "only masks of an exact count"),
    ],
)
def test_what_does_not_fit_together_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        rules.check(toy_config("recipe=m3ae_med", **(ALL | values)))


def test_patches_that_are_left_out_need_a_fusion_with_a_decoder():
    with pytest.raises(UserError, match=r"hidden=left_out does not go with model\.fusion\.kind=cross"):
        rules.check(toy_config(model__image__hidden="left_out"))
