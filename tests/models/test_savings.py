"""Work that is left out changes no number: each saving against the plain computation, values and gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.context import Context
from maskvlm_jax.models.fusion import CrossStack, Memory
from maskvlm_jax.models.layers import take
from maskvlm_jax.pretrainer import CLEAN
from maskvlm_jax.train_step import split_model
from tests.reference import toy

BOTH = {name: frozenset({"clean", "masked"}) for name in ("image", "text")}
B, S, T, D = 3, 6, 5, toy.WIDTH
READ = np.array([[0, 4], [2, 1], [5, 5]], np.int32)
VALID_S = np.arange(S) < np.array([[6], [3], [5]])
VALID_T = np.arange(T) < np.array([[2], [5], [4]])


def cross_stack(depth: int, norm: str = "post", dropout: float = 0.0, **changes) -> CrossStack:
    sizes = {"width": D, "depth": depth, "heads": toy.HEADS, "mlp_ratio": 2, "norm": norm, "dropout": dropout}
    return toy.randomised(lambda: CrossStack(**sizes, **toy.shared(**changes), rngs=nnx.Rngs(0)))


def sequences() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(B, S, D)).astype(np.float32), rng.normal(size=(B, T, D)).astype(np.float32)


def values_and_gradients(module: nnx.Module, run: Callable) -> tuple[dict, dict]:
    """run(module) -> arrays by name, and the parameters' gradients of a random weighting of all of them."""
    graphdef, params = split_model(module)

    def total(params):
        outputs = run(nnx.merge(graphdef, params))
        weights = {name: jax.random.normal(jax.random.key(len(name)), x.shape) for name, x in outputs.items()}
        return sum(jnp.sum(x * weights[name]) for name, x in outputs.items()), outputs

    (_, outputs), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return outputs, grads


def assert_same(module: nnx.Module, fast: Callable, plain: Callable) -> None:
    outputs, grads = values_and_gradients(module, fast)
    plain_outputs, plain_grads = values_and_gradients(module, plain)
    toy.assert_trees_close(outputs, plain_outputs, 2e-6)
    toy.assert_trees_close(grads, plain_grads, 2e-6)


def plain_stack(stack: CrossStack, x: jax.Array, context: jax.Array, valid_x=None, valid_context=None) -> jax.Array:
    """Every block at every position, each projecting the memory for itself."""
    for index in range(stack.depth):
        block = stack.blocks.layer(index)
        memory = Memory(*block.cross_attention.project(context), valid_context)
        x = block.attend_memory(block.attend_self(x, valid_x), memory)
    return x if stack.norm is None else stack.norm(x)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_reading_some_positions_is_the_whole_output_gathered(depth, norm):
    x, context = sequences()

    def fast(stack):
        return {"read": stack(x, stack.project(context, VALID_T), VALID_S, READ)}

    def plain(stack):
        return {"read": take(plain_stack(stack, x, context, VALID_S, VALID_T), READ)}

    assert_same(cross_stack(depth, norm), fast, plain)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_start_then_finish_is_the_whole_stack(depth):
    x, context = sequences()

    def fast(stack):
        memory = stack.project(context, VALID_T)
        return {
            "all": stack.finish(stack.start(x, VALID_S), memory, VALID_S),
            "read": stack.finish(stack.start(x, VALID_S, READ), memory, VALID_S, READ),
        }

    def plain(stack):
        full = plain_stack(stack, x, context, VALID_S, VALID_T)
        return {"all": full, "read": take(full, READ)}

    assert_same(cross_stack(depth), fast, plain)


@pytest.mark.parametrize("changes", [{"unroll": False, "remat": r} for r in ("none", "dots", "full")], ids=str)
def test_scan_and_rematerialisation_change_no_number_with_dropout_on(changes):
    x, context = sequences()

    def run(stack):
        return {"all": stack(x, stack.project(context, VALID_T), VALID_S, key=jax.random.key(3))}

    outputs, grads = values_and_gradients(cross_stack(4, dropout=0.2, **changes), run)
    unrolled, unrolled_grads = values_and_gradients(cross_stack(4, dropout=0.2, unroll=True), run)
    toy.assert_trees_close(outputs, unrolled, 2e-6)
    toy.assert_trees_close(grads, unrolled_grads, 2e-6)


def test_dropout_of_a_stack_differs_from_layer_to_layer_and_from_key_to_key():
    x, context = sequences()
    stack = cross_stack(2, dropout=0.5)
    memory = stack.project(context)
    outputs = [np.asarray(stack(x, memory, key=key)) for key in (None, *map(jax.random.key, (0, 1)))]
    assert all(np.any(outputs[i] != outputs[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_clean_and_masked_views_in_one_call_are_two_calls():
    batch = toy.batch()

    def encode(views):
        def run(pretrainer):
            ctx = pretrainer.context(batch, views=views)
            encoded = {f"{name}/{view}": getattr(ctx, name)(view) for name in BOTH for view in ("clean", "masked")}
            return {name.replace("/", "_"): x for name, x in encoded.items()}

        return run

    assert_same(toy.pretrainer(), encode(BOTH), encode(CLEAN))


@pytest.mark.parametrize("depth", [1, 2])
def test_pairs_of_gathered_memories_are_pairs_encoded_one_by_one(depth):
    batch = toy.batch()
    images, texts = np.array([0, 1, 2, 3, 2, 2, 0]), np.array([0, 1, 2, 3, 0, 1, 3])

    def fast(pretrainer):
        image, text = pretrainer.context(batch).fuse_pairs(images, texts)
        return {"image": image, "text": text}

    def plain(pretrainer):
        vlm, pairs = pretrainer.vlm, []
        for i, t in zip(images, texts, strict=True):
            valid = batch["token_valid"][t : t + 1]
            image = vlm.image_encoder(batch["image"][i : i + 1])
            text = vlm.text_encoder(batch["tokens"][t : t + 1], valid)
            pairs.append(
                (
                    plain_stack(vlm.image_fusion, image, text, None, valid)[0, 0],
                    plain_stack(vlm.text_fusion, text, image, valid, None)[0, 0],
                )
            )
        return {name: jnp.stack(rows) for name, rows in zip(("image", "text"), zip(*pairs, strict=True), strict=True)}

    assert_same(toy.pretrainer(depth=depth), fast, plain)


@pytest.mark.parametrize("tie", [False, True])
def test_word_logits_at_masked_tokens_are_all_logits_gathered(tie):
    batch = toy.batch()

    def fast(pretrainer):
        return {"logits": pretrainer.objectives["masked_text"].predict(pretrainer.context(batch))[0]}

    def plain(pretrainer):
        vlm, objective = pretrainer.vlm, pretrainer.objectives["masked_text"]
        valid = batch["token_valid"]
        text, image = vlm.text_encoder(batch["tokens_masked"], valid), vlm.image_encoder(batch["image"])
        fused = plain_stack(vlm.text_fusion, text, image, valid, None)
        logits = fused @ vlm.text_encoder.embedding[...].T + objective.bias[...] if tie else objective.to_words(fused)
        return {"logits": take(logits, pretrainer.context(batch).masked_tokens.ids_BM)}

    assert_same(toy.pretrainer(objectives={"masked_text": {"tie": tie}}), fast, plain)


def test_pixels_at_masked_patches_are_all_pixels_gathered():
    batch = toy.batch()

    def fast(pretrainer):
        return {"pixels": pretrainer.objectives["masked_image"].predict(pretrainer.context(batch))[0]}

    def plain(pretrainer):
        vlm, objective = pretrainer.vlm, pretrainer.objectives["masked_image"]
        valid = batch["token_valid"]
        text = vlm.text_encoder(batch["tokens"], valid)
        fused = plain_stack(
            vlm.image_fusion, vlm.image_encoder(batch["image"], batch["image_masked"]), text, None, valid
        )
        pixels = objective.to_pixels(plain_stack(objective.decoder, fused, text, None, valid))
        return {"pixels": jnp.stack([x[1:][hidden] for x, hidden in zip(pixels, batch["image_masked"], strict=True)])}

    assert_same(toy.pretrainer(), fast, plain)


def test_a_context_computes_every_memory_once(monkeypatch):
    calls = []
    project = CrossStack.project
    monkeypatch.setattr(CrossStack, "project", lambda self, *args: calls.append(self) or project(self, *args))
    pretrainer, batch = toy.pretrainer(), toy.batch()
    jax.eval_shape(lambda: pretrainer(batch, jax.random.key(0))[0])
    vlm, decoder = pretrainer.vlm, pretrainer.objectives["masked_image"].decoder
    assert sorted(map(id, calls)) == sorted(map(id, (vlm.image_fusion, vlm.text_fusion, decoder)))


def test_a_context_without_declared_views_still_encodes_what_is_asked_for():
    pretrainer, batch = toy.pretrainer(), toy.batch()
    ctx = Context(pretrainer.vlm, batch, masked_patches=toy.MASKED_PATCHES, text_ratio=toy.TEXT_RATIO, views={})
    assert ctx.image("masked").shape == (4, 1 + toy.PATCHES, toy.WIDTH)
    assert ctx.text("masked").shape == (4, toy.LENGTH, toy.WIDTH)
