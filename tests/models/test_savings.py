"""Work that is left out changes no number: each saving against the plain computation, values and gradients."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.models import attention
from maskvlm_jax.models.block import BlockSpec
from maskvlm_jax.models.cross import CrossStack
from maskvlm_jax.models.layers import take
from maskvlm_jax.models.stack import Stack, layer_keys
from maskvlm_jax.models.vlm import VLM
from maskvlm_jax.objectives.context import Context
from maskvlm_jax.objectives.learner import CLEAN, Learner
from maskvlm_jax.runtime import sharding
from maskvlm_jax.training.train_step import split_model
from tests.reference import toy

BOTH = {name: frozenset({"clean", "masked"}) for name in ("image", "text")}
TOLERANCE = 2e-6
UNOPTIMISED = {"xla_backend_optimization_level": 0}  # the compiler would take most of the tests' time
B, S, T, D = 3, 6, 5, toy.WIDTH
READ = np.array([[0, 4], [2, 1], [5, 5]], np.int32)
VALID_S = np.arange(S) < np.array([[6], [3], [5]])
PAIRS = np.array([0, 1, 2, 2]), np.array([0, 1, 0, 3])  # images, captions
VALID_T = np.arange(T) < np.array([[2], [5], [4]])


def cross_stack(depth: int, norm: str = "post", dropout: float = 0.0, **changes) -> CrossStack:
    spec = BlockSpec(D, toy.HEADS, mlp_ratio=2, norm=norm, dropout=dropout, **toy.shared(**changes))
    return toy.randomised(lambda: CrossStack(spec, depth=depth, rngs=nnx.Rngs(0)))


def sequences() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(B, S, D)).astype(np.float32), rng.normal(size=(B, T, D)).astype(np.float32)


def values_and_gradients(module: nnx.Module, run: Callable, *, compiled: bool) -> tuple[dict, dict]:
    """run(module) -> arrays by name, and the parameters' gradients of a random weighting of all of them."""
    graphdef, params = split_model(module)

    def total(params):
        outputs = run(nnx.merge(graphdef, params))
        weights = {name: np.random.default_rng([*name.encode()]).normal(size=x.shape) for name, x in outputs.items()}
        return sum(jnp.sum(x * weights[name].astype(np.float32)) for name, x in outputs.items()), outputs

    function = jax.value_and_grad(total, has_aux=True)
    if compiled:
        function = jax.jit(function).lower(params).compile(UNOPTIMISED)
    (_, outputs), grads = function(params)
    return outputs, grads


def assert_same(module: nnx.Module, fast: Callable, plain: Callable) -> None:
    """The compiled `fast` gives the numbers of `plain`, which runs one operation at a time."""
    outputs, grads = values_and_gradients(module, fast, compiled=True)
    plain_outputs, plain_grads = values_and_gradients(module, plain, compiled=False)
    toy.assert_trees_close(outputs, plain_outputs, TOLERANCE)
    toy.assert_trees_close(grads, plain_grads, TOLERANCE)


def plain_stack(stack: CrossStack, x: jax.Array, context: jax.Array, valid_x=None, valid_context=None) -> jax.Array:
    """Every block at every position, each projecting the memory for itself."""
    for index in range(stack.depth):
        block = stack.blocks.layer(index)
        memory = block.cross_attention.project(context)
        x = block.attend_memory(block.attend_self(x, valid_x), *memory, valid_context)
    return x if stack.norm is None else stack.norm(x)


@pytest.mark.parametrize(
    ("depth", "norm", "unroll"),
    [(1, "pre", True), (1, "post", True), (2, "post", True), (3, "pre", True), (4, "post", False)],
)
def test_a_stack_read_at_some_positions_is_every_block_at_every_position(depth, norm, unroll):
    x, context = sequences()

    def fast(stack):
        memory = stack.project(context, VALID_T)
        return {"read": stack(x, memory, VALID_S, READ), "all": stack.finish(stack.start(x, VALID_S), memory, VALID_S)}

    def plain(stack):
        full = plain_stack(stack, x, context, VALID_S, VALID_T)
        return {"read": take(full, READ), "all": full}

    assert_same(cross_stack(depth, norm, unroll=unroll), fast, plain)


def stack_with_dropout(**changes) -> tuple[dict, dict]:
    x, _ = sequences()

    def run(stack):
        keys = layer_keys(jax.random.key(3), stack.depth)
        return {"all": stack.scan(lambda block, x, key: block(x, VALID_S, key), jnp.asarray(x), keys)}

    spec = BlockSpec(D, toy.HEADS, mlp_ratio=2, dropout=0.2, **changes)
    stack = toy.randomised(lambda: Stack(spec, 3, rngs=nnx.Rngs(0)))
    return values_and_gradients(stack, run, compiled=True)


@pytest.fixture(scope="module")
def unrolled():
    return stack_with_dropout(unroll=True)


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_loop_over_layers_and_rematerialisation_change_no_number(remat, unroll, unrolled):
    outputs, grads = stack_with_dropout(unroll=unroll, remat=remat)
    toy.assert_trees_close(outputs, unrolled[0], TOLERANCE)
    toy.assert_trees_close(grads, unrolled[1], TOLERANCE)


def test_dropout_of_a_stack_differs_from_layer_to_layer_and_from_key_to_key():
    x, context = sequences()
    stack = cross_stack(2, dropout=0.5)
    memory = stack.project(context)
    outputs = [np.asarray(stack(x, memory, key=key)) for key in (None, *map(jax.random.key, (0, 1)))]
    assert all(np.any(outputs[i] != outputs[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_clean_and_masked_views_in_one_call_are_two_calls():
    learner, batch = toy.learner(), toy.batch()
    together, apart = learner.context(batch, views=BOTH), learner.context(batch, views=CLEAN)
    for view in ("clean", "masked"):
        np.testing.assert_allclose(together.image(view), apart.image(view), rtol=TOLERANCE, atol=TOLERANCE)
        np.testing.assert_allclose(together.text(view), apart.text(view), rtol=TOLERANCE, atol=TOLERANCE)


def plain_pairs(vlm: VLM, batch: dict, image_BSD: jax.Array, text_BLD: jax.Array) -> jax.Array:
    """Class token times start token of `PAIRS`, one pair after the other run through both stacks alone."""

    def fuse(pair):
        i, t = pair
        image, text, valid = image_BSD[i, None], text_BLD[t, None], jnp.asarray(batch["token_valid"])[t, None]
        fused_image = plain_stack(vlm.fusion.image_stream, image, text, None, valid)
        fused_text = plain_stack(vlm.fusion.text_stream, text, image, valid, None)
        return fused_image[0, 0] * fused_text[0, 0]

    return jax.lax.map(fuse, PAIRS)


def saved(learner: Learner, batch: dict) -> dict[str, jax.Array]:
    """What the objectives read, as they read it."""
    ctx, objectives = learner.context(batch, views=BOTH), learner.objectives
    pairs = toy.fuse_pairs(ctx, *PAIRS)
    words, pixels = objectives["masked_text"].predict(ctx)[0], objectives["masked_image"].predict(ctx)[0]
    return {"pairs": pairs, "words": words, "pixels": pixels}


def plain(learner: Learner, batch: dict) -> dict[str, jax.Array]:
    """The same: every view encoded alone, every position computed, then the masked ones picked."""
    vlm, valid = learner.vlm, batch["token_valid"]
    image, text = vlm.image_encoder(batch["image"]), vlm.text_encoder(batch["tokens"], valid)
    pairs = plain_pairs(vlm, batch, image, text)

    masked_text = learner.objectives["masked_text"]
    words = plain_stack(vlm.fusion.text_stream, vlm.text_encoder(batch["tokens_masked"], valid), image, valid, None)
    embedding = vlm.text_encoder.embedding[...]
    words = words @ embedding.T + masked_text.bias[...] if masked_text.tie else masked_text.to_words(words)

    masked_image = learner.objectives["masked_image"]
    fused = vlm.image_encoder(batch["image"], batch["image_masked"])
    for stack in (vlm.fusion.image_stream, masked_image.decoder):
        fused = plain_stack(stack, fused, text, None, valid)
    pixels = masked_image.to_pixels(fused)
    hidden = [x[1:][mask] for x, mask in zip(pixels, batch["image_masked"], strict=True)]
    return {
        "pairs": pairs,
        "words": take(words, learner.context(batch).masked_tokens.ids_BM),
        "pixels": jnp.stack(hidden),
    }


@pytest.fixture(scope="module")
def shallow():
    """(saved, plain) of a model of cross depth 1 with tied words, each (arrays by name, gradients)."""
    learner, batch = toy.learner(depth=1, objectives={"masked_text": {"tie": True}}), toy.batch()
    return [values_and_gradients(learner, partial(run, batch=batch), compiled=True) for run in (saved, plain)]


@pytest.fixture(scope="module")
def deep():
    """(saved, plain) of a model of cross depth 2, arrays by name."""
    graphdef, params = split_model(toy.learner(depth=2))
    runs = [lambda params, run=run: run(nnx.merge(graphdef, params), toy.batch()) for run in (saved, plain)]
    return [jax.jit(run).lower(params).compile(UNOPTIMISED)(params) for run in runs]


@pytest.fixture(params=["depth 1, tied words", "depth 2"])
def both(request):
    """(saved, plain), arrays by name."""
    if request.param == "depth 2":
        return request.getfixturevalue("deep")
    return [values for values, _ in request.getfixturevalue("shallow")]


def test_pairs_of_gathered_memories_are_pairs_run_one_by_one(both):
    np.testing.assert_allclose(both[0]["pairs"], both[1]["pairs"], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["words", "pixels"])
def test_predictions_at_masked_positions_are_all_predictions_gathered(both, name):
    np.testing.assert_allclose(both[0][name], both[1][name], rtol=TOLERANCE, atol=TOLERANCE)


def test_gradients_with_every_saving_are_those_without(shallow):
    toy.assert_trees_close(shallow[0][1], shallow[1][1], TOLERANCE)


def test_sequences_of_even_length_and_layouts_for_a_gpu_change_no_number(shallow, monkeypatch):
    padded = []

    def stand_in(query_BSHK, key_BTHK, value_BTHK, valid):
        padded.append((query_BSHK.shape[1], key_BTHK.shape[1]))
        mask = None if valid is None else jnp.broadcast_to(valid.mask(key_BTHK.shape[1]), key_BTHK.shape[:2])
        return attention._attend(query_BSHK, key_BTHK, value_BTHK, mask)

    monkeypatch.setattr(attention, "fused_by_cudnn", lambda *_: True)
    monkeypatch.setattr(attention, "_attend_by_cudnn", stand_in)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    learner = toy.learner(depth=1, objectives={"masked_text": {"tie": True}})
    values, gradients = values_and_gradients(learner, partial(saved, batch=toy.batch()), compiled=True)
    toy.assert_trees_close(values, shallow[0][0], TOLERANCE)
    toy.assert_trees_close(gradients, shallow[0][1], TOLERANCE)
    assert {keys for _, keys in padded} == {toy.LENGTH, 2 + toy.PATCHES}  # none of 1 + toy.PATCHES, which is odd


@pytest.mark.parametrize("devices", [1, 8])
def test_one_gpu_alone_is_told_a_layout(devices, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    stack = Stack(BlockSpec(width=4, heads=1), 2, rngs=nnx.Rngs(0))
    with jax.set_mesh(sharding.make_mesh(data=devices, fsdp=1, model=1, devices=jax.devices()[:devices])):
        traced = jax.make_jaxpr(lambda x: stack.scan(lambda block, x, _: block(x), x))(jnp.ones((8, 3, 4)))
    assert ("layout_constraint" in str(traced)) == (devices == 1)


def test_a_context_computes_every_memory_once(monkeypatch):
    calls = []
    project = CrossStack.project
    monkeypatch.setattr(CrossStack, "project", lambda self, *args: calls.append(self) or project(self, *args))
    learner = toy.learner()
    jax.eval_shape(lambda batch: learner(batch, jax.random.key(0))[0], toy.batch())
    vlm, decoder = learner.vlm, learner.objectives["masked_image"].decoder
    assert sorted(map(id, calls)) == sorted(map(id, (vlm.fusion.image_stream, vlm.fusion.text_stream, decoder)))


def test_a_context_without_declared_views_still_encodes_what_is_asked_for():
    learner, batch = toy.learner(), toy.batch()
    ctx = Context(learner.vlm, batch, masked_patch_count=toy.MASKED_PATCHES, text_ratio=toy.TEXT_RATIO, views={})
    assert ctx.image("masked").shape == (4, 1 + toy.PATCHES, toy.WIDTH)
    assert ctx.text("masked").shape == (4, toy.LENGTH, toy.WIDTH)
