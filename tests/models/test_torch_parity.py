"""Layers and encoders give torch's outputs and gradients, from torch's weights (`reference/make_golden.py`)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.models.block import BlockSpec
from maskvlm_jax.models.blocks.dense import Block, CrossBlock
from maskvlm_jax.models.layers import Attention
from maskvlm_jax.models.text import TextEncoder
from maskvlm_jax.models.vision import ImageEncoder
from maskvlm_jax.training.train_step import split_model
from tests.reference import golden, toy

SPEC = BlockSpec(width=16, heads=2)
VIT = dataclasses.replace(SPEC, eps=1e-6)


def attention() -> tuple[Callable[[], nnx.Module], Callable]:
    arguments = {"heads": 2, "init_std": 0.02, "dtype": "float32"}
    return lambda: Attention(16, **arguments, rngs=nnx.Rngs(0)), lambda m, x, context, valid: m(
        x, *m.project(context), valid
    )


def block(norm: str) -> tuple[Callable[[], nnx.Module], Callable]:
    spec = VIT if norm == "pre" else dataclasses.replace(SPEC, norm=norm)
    return lambda: Block(spec, rngs=nnx.Rngs(0)), lambda m, x, valid: m(x, valid)


def cross_block(norm: str) -> tuple[Callable[[], nnx.Module], Callable]:
    def run(m, x, context, valid, context_valid):
        return m.attend_memory(m.attend_self(x, valid), *m.cross_attention.project(context), context_valid)

    return lambda: CrossBlock(dataclasses.replace(SPEC, norm=norm), rngs=nnx.Rngs(0)), run


def image_encoder() -> tuple[Callable[[], nnx.Module], Callable]:
    sizes = {"image_size": 8, "patch": 4, "depth": 2}
    return lambda: ImageEncoder(VIT, **sizes, rngs=nnx.Rngs(0)), lambda m, image, masked: m(image, masked)


def text_encoder() -> tuple[Callable[[], nnx.Module], Callable]:
    spec, sizes = dataclasses.replace(SPEC, norm="post"), {"vocab_size": 11, "max_length": 7, "depth": 2}
    return lambda: TextEncoder(spec, **sizes, rngs=nnx.Rngs(0)), lambda m, tokens, valid: m(tokens, valid)


BUILDERS = {
    "attention": attention,
    "block_pre": lambda: block("pre"),
    "block_post": lambda: block("post"),
    "cross_block_pre": lambda: cross_block("pre"),
    "cross_block_post": lambda: cross_block("post"),
    "image_encoder": image_encoder,
    "text_encoder": text_encoder,
}


@pytest.fixture(scope="module", params=BUILDERS)
def both(request):
    """(torch's values, the package's values) of one module, the second of the same type as the first."""
    build, run = BUILDERS[request.param]()
    expected = golden.load(request.param)
    graphdef, initial = split_model(toy.randomised(build))
    shapes = {path: value.shape for path, value in toy.by_path(initial).items()}
    assert {path: value.shape for path, value in expected.params.items()} == shapes
    fixed = {name: value for name, value in expected.inputs.items() if name not in expected.input_grads}
    free = {name: expected.inputs[name] for name in expected.input_grads}

    @jax.jit
    def values(params, free):
        def total(params, free):
            output = run(nnx.merge(graphdef, params), **free, **fixed)
            return jnp.sum(output * expected.cotangent), output

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(params, free)

    (_, output), (param_grads, input_grads) = values(toy.nested(expected.params), free)
    actual = golden.Golden(
        expected.inputs, expected.params, np.asarray(output), expected.cotangent, input_grads, toy.by_path(param_grads)
    )
    return expected, actual


def test_output_is_that_of_torch(both):
    expected, actual = both
    np.testing.assert_allclose(actual.output, expected.output, rtol=1e-5, atol=1e-5)


def test_gradients_of_the_inputs_are_those_of_torch(both):
    expected, actual = both
    for name, value in expected.input_grads.items():
        np.testing.assert_allclose(actual.input_grads[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_gradients_of_all_parameters_are_those_of_torch(both):
    expected, actual = both
    assert actual.param_grads.keys() == expected.param_grads.keys()
    for path, value in expected.param_grads.items():
        # Sums over all positions: rounding grows with the largest term, so the tolerance is relative to it.
        scale = max(1.0, float(np.max(np.abs(value))))
        np.testing.assert_allclose(actual.param_grads[path], value, rtol=1e-5, atol=1e-5 * scale, err_msg=path)


def test_every_parameter_but_the_attention_key_bias_has_a_gradient(both):
    _, actual = both
    for path, value in actual.param_grads.items():
        # A constant added to every key shifts all logits of a query alike: softmax, and so the loss, does not move.
        assert np.any(value) or path.endswith("key/bias"), path


def test_a_kernel_is_the_transpose_of_torchs_weight():
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)  # torch: (outputs, inputs)
    converted = golden.from_torch({"linear1.weight": weight})
    assert converted["feed_forward/up/kernel"].shape == (3, 4)
    np.testing.assert_array_equal(converted["feed_forward/up/kernel"], weight.T)
