"""Primitives with backward passes of their own against autodiff of the plain formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.models import attention, primitives
from maskvlm_jax.models.layers import Attention, few_queries
from tests.reference import toy

DTYPES = {"float32": 3e-6, "bfloat16": 3e-2}  # and how far apart the two may be, of the largest number


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), jnp.float32)


def assert_same(own, plain, arguments, dtype: str, others=()) -> None:
    """Values and all gradients of own(*arguments, *others) are those of plain in float32."""
    near = [x.astype(dtype) for x in arguments]
    wide = [x.astype("float32") for x in near]
    out, pull = jax.vjp(lambda *a: own(*a, *others), *near)
    expected, plain_pull = jax.vjp(lambda *a: plain(*a, *others), *wide)
    weights = normal(*out.shape, seed=7).astype(dtype)
    assert out.dtype == dtype
    pairs = [(out, expected), *zip(pull(weights), plain_pull(weights.astype("float32")), strict=True)]
    for ours, theirs in pairs:
        scale = float(jnp.max(jnp.abs(theirs))) or 1.0
        np.testing.assert_allclose(ours.astype("float32") / scale, theirs / scale, atol=DTYPES[dtype], rtol=0)
    assert [ours.dtype for ours, _ in pairs[1:]] == [x.dtype for x in near]


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm(dtype):
    def own(x, scale, bias):
        return primitives.layer_norm(x, scale.astype("float32"), bias.astype("float32"), 1e-5, dtype)

    def plain(x, scale, bias):
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias

    assert_same(own, plain, [2 + 3 * normal(4, 3, 8), normal(8, seed=1), normal(8, seed=2)], dtype)


def plain_attention(query, key, value, valid=None):
    logits = jnp.einsum("bshk,bthk->bhst", query, key) / np.sqrt(query.shape[-1])
    if valid is not None:
        logits = jnp.where(valid[:, None, None], logits, -jnp.inf)
    return jnp.einsum("bhst,bthk->bshk", jax.nn.softmax(logits), value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("keys", [1, 6, 11])  # weights of 11 keys are more than keys and values of 4, kept no longer
def test_attention(dtype, padded, keys):
    others = [jnp.arange(keys) < np.array([[keys], [1], [(keys + 1) // 2]])] if padded else []
    arguments = [normal(3, 5, 2, 4), normal(3, keys, 2, 4, seed=1), normal(3, keys, 2, 4, seed=2)]
    assert_same(attention.attend, plain_attention, arguments, dtype, others)


def plain_masked(query, key, value, valid_BST):
    logits = jnp.einsum("bshk,bthk->bhst", query, key) / np.sqrt(query.shape[-1])
    return jnp.einsum("bhst,bthk->bshk", jax.nn.softmax(jnp.where(valid_BST[:, None], logits, -jnp.inf)), value)


@pytest.mark.parametrize("length", [5, 11])  # of which weights are kept, and computed again
def test_attention_of_each_query_to_keys_of_its_own(length):
    arguments = [normal(3, length, 2, 4, seed=part) for part in range(3)]
    assert_same(attention.attend, plain_masked, arguments, "float32", [attention.causal(length)])
    own = attention.causal(length) & (jnp.arange(length) != np.array([[1], [2], [4]]))[:, None]
    assert_same(attention.attend, plain_masked, arguments, "float32", [own | jnp.eye(length, dtype=bool)])


def test_causal_attention_reads_nothing_that_follows():
    layer = toy.randomised(lambda: Attention(16, heads=2, init_std=0.0, dtype="float32", rngs=nnx.Rngs(0)))
    x, valid = normal(2, 9, 16), attention.causal(9)
    whole = layer.to_itself(x, valid)
    np.testing.assert_allclose(whole[:, :4], layer.to_itself(x[:, :4], attention.causal(4)), rtol=2e-5, atol=1e-6)
    read = jnp.array([[8], [3]])
    few = layer.to_itself(x, valid, read)
    assert few_queries(1, 9, heads=2, width=16)
    np.testing.assert_allclose(few, jnp.take_along_axis(whole, read[:, :, None], axis=1), rtol=2e-5, atol=1e-6)


LENGTHS = {
    "all": lambda keys: None,
    "as many of each": lambda keys: attention.First(keys - 1),
    "another number of each": lambda keys: attention.First(jnp.array([keys, 1, keys // 2])),
}


def attend_first(query, key, value, valid, *, attend):
    """`attend` told by a mask."""
    valid = None if valid is None else jnp.broadcast_to(valid.mask(key.shape[1]), key.shape[:2])
    return attend(query, key, value, valid)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_attention_to_the_first_positions(lengths):
    arguments = [normal(3, 5, 2, 4), normal(3, 6, 2, 4, seed=1), normal(3, 6, 2, 4, seed=2)]
    plain = functools.partial(attend_first, attend=plain_attention)
    assert_same(attention.attend, plain, arguments, "float32", [LENGTHS[lengths](6)])


def test_the_first_positions_are_a_tree_that_is_traced_where_they_are_an_array():
    assert jax.tree.leaves(attention.First(3)) == []
    assert jax.jit(lambda first: first.count == 3)(attention.First(3))  # a number is known when it is traced
    first = attention.First.of(jnp.array([[True, True, False], [True, False, False]]))
    np.testing.assert_array_equal(jax.jit(lambda first: first.mask(3))(first), [[1, 1, 0], [1, 0, 0]])


@pytest.mark.skipif(attention.compute_capability() < 8.0, reason="needs an NVIDIA GPU: cuDNN")
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("queries", "keys"), [(197, 197), (30, 197), (1, 64), (197, 30), (30, 30), (1, 31)])
def test_attention_by_cudnn(queries, keys, lengths):
    arguments = [normal(3, queries, 2, 64), normal(3, keys, 2, 64, seed=1), normal(3, keys, 2, 64, seed=2)]
    assert attention.fused_by_cudnn("bfloat16", keys, 64)
    plain = functools.partial(attend_first, attend=plain_attention)
    assert_same(attention.attend, plain, arguments, "bfloat16", [LENGTHS[lengths](keys)])


def test_attention_keeps_the_smaller_of_weights_and_projections():
    def largest(keys):
        arguments = normal(3, 5, 2, 4), normal(3, keys, 2, 4), normal(3, keys, 2, 4)
        _, pull = jax.vjp(attention.attend, *arguments)
        return max(x.size for x in jax.tree.leaves(pull))

    assert largest(8) == 3 * 2 * 5 * 8  # the weights
    assert largest(9) == 3 * 9 * 2 * 4  # keys, and nothing of queries x keys


def test_a_row_without_a_valid_key_attends_to_all_alike():
    query, key, value = normal(1, 2, 1, 4), normal(1, 3, 1, 4), normal(1, 3, 1, 4, seed=1)
    out = attention.attend(query, key, value, jnp.zeros((1, 3), bool))
    np.testing.assert_allclose(out, jnp.broadcast_to(value.mean(1, keepdims=True), out.shape), atol=1e-6)


@pytest.mark.parametrize("padded", [False, True])
def test_few_queries_read_a_sequence_without_its_keys_and_values(padded):
    length, width = 9, 16
    read = np.array([[0], [3], [2]])
    assert few_queries(1, length, heads=2, width=width)
    valid = jnp.arange(length) < np.array([[9], [4], [7]]) if padded else None
    module = toy.randomised(lambda: Attention(width, heads=2, init_std=0.5, dtype="float32", rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(module)
    x = normal(3, length, width)

    def plain(params, x):
        module = nnx.merge(graphdef, params)
        rows = jnp.take_along_axis(x, read[:, :, None], axis=1)
        return module(rows, *module.project(x), valid)

    own = lambda params, x: nnx.merge(graphdef, params).to_itself(x, valid, read)  # noqa: E731
    out, pull = jax.vjp(own, params, x)
    expected, plain_pull = jax.vjp(plain, params, x)
    weights = normal(*out.shape, seed=7)
    for ours, theirs in zip(
        jax.tree.leaves((out, pull(weights))), jax.tree.leaves((expected, plain_pull(weights))), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5,), (1, 5), (1, 4, 5), (3, 4, 5)])
def test_spread(dtype, shape):
    own = lambda x: primitives.spread(x, (3, 4, 5), dtype)  # noqa: E731
    assert_same(own, lambda x: jnp.broadcast_to(x, (3, 4, 5)), [normal(*shape)], dtype)


def test_gradients_of_what_is_spread_over_a_batch_are_sums_in_float32():
    """One part in 256 is all that bfloat16 tells apart: a sum of 60,000 ones in it stands still at 256."""
    count, product = 60_000, primitives.Product("bfloat16", "bfloat16")
    x = jnp.ones((count, 2), jnp.bfloat16)

    def total(token, kernel, bias):
        x_MD = x + primitives.spread(token, x.shape, "bfloat16")
        return jnp.sum(primitives.dense(x_MD, kernel, bias, product), dtype=jnp.float32)

    token, kernel, bias = jax.grad(total, argnums=(0, 1, 2))(jnp.zeros(2), jnp.eye(2), jnp.zeros(2))
    for gradient in (token, bias):
        np.testing.assert_array_equal(gradient, [count, count])
    np.testing.assert_allclose(kernel, np.full((2, 2), count), rtol=1e-6)
    assert token.dtype == kernel.dtype == bias.dtype == jnp.float32
