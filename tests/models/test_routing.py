"""Routed experts are the slow mixture token by token, by either way, and nothing is dropped."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.models import auxiliary, routing
from maskvlm_jax.models.block import BlockSpec, RoutedSpec
from maskvlm_jax.models.blocks import dense
from maskvlm_jax.models.blocks.experts import ModalityBlock, RoutedBlock
from maskvlm_jax.models.primitives import Product
from maskvlm_jax.runtime import sharding
from tests.reference import numpy_experts, toy

WIDTH, HIDDEN, TOP = 8, 12, 2
RNG = np.random.default_rng(0)
FLOAT32 = Product("float32", "float32")


def quick_gelu(x: float) -> float:
    return x / (1 + math.exp(-1.702 * x))


def parameters(experts: int) -> list[np.ndarray]:
    shapes = [(experts, WIDTH, HIDDEN), (experts, HIDDEN), (experts, HIDDEN, WIDTH), (experts, WIDTH)]
    return [(0.5 * RNG.normal(size=shape)).astype(np.float32) for shape in shapes]


def choice(rows: int, experts: int) -> tuple[np.ndarray, jax.Array, jax.Array]:
    """Shares of the experts, of which the first gets most, and what is chosen."""
    logits = RNG.normal(size=(rows, experts)) + 2 * (np.arange(experts) == 0)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return shares, *routing.chosen(jnp.asarray(shares, jnp.float32), TOP)


WAYS = {"all": routing.through_all, "chosen": routing.through_chosen}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("rows", "experts"), [(1, 2), (7, 2), (23, 3), (40, 9), (3, 16)])
def test_either_way_is_the_sum_of_the_chosen_experts_of_each_token(way, rows, experts):
    x, own, (shares, weights, ids) = RNG.normal(size=(rows, WIDTH)), parameters(experts), choice(rows, experts)
    found = WAYS[way](FLOAT32, "quick_gelu", jnp.asarray(x, jnp.float32), weights, ids, *own)
    one = [tuple(part[e] for part in own) for e in range(experts)]
    expected = [numpy_experts.mixture(x[m], shares[m], one, TOP, quick_gelu) for m in range(rows)]
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("experts", [2, 9])
def test_both_ways_have_the_same_gradients(experts):
    x, own = jnp.asarray(RNG.normal(size=(21, WIDTH)), jnp.float32), [jnp.asarray(p) for p in parameters(experts)]
    _, weights, ids = choice(21, experts)
    to = jnp.asarray(RNG.normal(size=x.shape), jnp.float32)

    def gradients(through):
        loss = lambda x, weights, *own: jnp.sum(to * through(FLOAT32, "quick_gelu", x, weights, ids, *own))  # noqa: E731
        return jax.grad(loss, argnums=tuple(range(6)))(x, weights, *own)

    ours, theirs = (dict(zip("abcdef", gradients(through), strict=True)) for through in WAYS.values())
    toy.assert_trees_close(ours, theirs, 2e-5)
    unchosen = np.setdiff1d(np.arange(experts), np.asarray(ids))
    assert not np.any(np.asarray(ours["c"])[unchosen])


def test_every_row_has_one_slot_of_a_group_of_its_expert():
    for rows, experts in ((1, 1), (5, 8), (64, 4), (100, 3)):
        ids = np.minimum(RNG.geometric(0.5, rows) - 1, experts - 1)
        groups = jax.tree.map(np.asarray, routing.grouped(jnp.asarray(ids), experts))
        flat, size = groups.row_ZR.reshape(-1), groups.row_ZR.shape[1]
        np.testing.assert_array_equal(flat[groups.slot_M], np.arange(rows))
        np.testing.assert_array_equal(np.sort(flat[flat < rows]), np.arange(rows))
        np.testing.assert_array_equal(groups.expert_Z[groups.slot_M // size], ids)
        assert groups.row_ZR.size <= rows + experts * size and (size == 1 or experts * size <= rows / 2)


def test_weights_of_the_chosen_sum_to_one_and_the_likeliest_is_first():
    shares = jnp.asarray([[0.1, 0.2, 0.4, 0.3], [0.25, 0.25, 0.25, 0.25]])
    weights, ids = routing.chosen(shares, 2)
    np.testing.assert_array_equal(ids, [[2, 3], [0, 1]])
    np.testing.assert_allclose(weights, [[4 / 7, 3 / 7], [0.5, 0.5]], rtol=1e-6)


def make_router() -> routing.Router:
    return toy.randomised(lambda: routing.Router(WIDTH, 5, init_std=0.0, rngs=nnx.Rngs(0)))


def test_the_router_adds_the_vector_of_the_modality_in_full_float32():
    router, x = make_router(), RNG.normal(size=(2, 6, WIDTH)).astype(np.float32)
    found = router(jnp.asarray(x), 4)
    assert router(jnp.asarray(x, jnp.bfloat16), 4).dtype == found.dtype == jnp.float32
    for b, s in np.ndindex(2, 6):
        modality = (router.text_type if s < 4 else router.image_type)[...]
        expected = numpy_experts.router(x[b, s], router.kernel[...], np.asarray(modality))
        np.testing.assert_allclose(found[b, s], expected, rtol=1e-5)


def test_without_that_vector_equal_tokens_go_the_same_way_whatever_they_are():
    router, x = make_router(), jnp.broadcast_to(jnp.asarray(RNG.normal(size=WIDTH), jnp.float32), (1, 4, WIDTH))
    told = np.asarray(router(x, 2))[0]
    assert np.abs(told[0] - told[2]).max() > 1e-3
    router.text_type[...] = router.image_type[...] = jnp.zeros(WIDTH)
    same = np.asarray(router(x, 2))[0]
    np.testing.assert_array_equal(same, np.broadcast_to(same[0], same.shape))


def block_of(kind, **options):
    spec = {"heads": 2, "mlp_ratio": 2, "activation": "quick_gelu", **options}
    make = RoutedSpec if kind is RoutedBlock else BlockSpec
    more = {"experts": 4, "top": TOP, "expert_ratio": 2} if kind is RoutedBlock else {}
    return toy.randomised(lambda: kind(make(WIDTH, **spec, **more), rngs=nnx.Rngs(0)))


X = RNG.normal(size=(2, 7, WIDTH)).astype(np.float32)
VALID = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1, 1]], bool)
READ = np.array([[0, 2, 5, 6], [1, 0, 4, 5]])  # two words, two patches


@pytest.mark.parametrize("pre", [True, False])
def test_a_block_by_modality_is_a_plain_block_on_each_of_the_two_parts(pre):
    block = block_of(ModalityBlock, norm="pre" if pre else "post")
    found = block(X, VALID, words=4, read_words=4)
    plain = block_of(dense.Block, norm="pre" if pre else "post")
    plain.attention, plain.norm1 = block.attention, block.norm1
    for name, part in (("text", slice(0, 4)), ("image", slice(4, 7))):
        plain.feed_forward, plain.norm2 = block.feed_forward[name], block.norm2[name]
        np.testing.assert_allclose(found[:, part], plain(X, VALID)[:, part], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("listened", [False, True])
@pytest.mark.parametrize("kind", [ModalityBlock, RoutedBlock])
def test_positions_that_are_read_are_those_of_the_whole_sequence(kind, listened):
    block = block_of(kind)
    whole = np.asarray(block(X, VALID, words=4, read_words=4))
    with auxiliary.collecting(wanted=listened):
        read = block(X, VALID, None, jnp.asarray(READ), words=4, read_words=2)
    np.testing.assert_allclose(read, np.take_along_axis(whole, READ[:, :, None], axis=1), rtol=1e-5, atol=1e-6)


def test_a_routed_block_hands_out_every_position_whether_it_is_read_or_not():
    block, told = block_of(RoutedBlock), []
    for read in (None, jnp.asarray(READ)):
        with auxiliary.collecting() as values:
            block(X, VALID, None, read, words=4, read_words=2)
        told.append(values)
    for values in told:
        np.testing.assert_array_equal(values["routed"][0][0], VALID)
        np.testing.assert_allclose(values["router"][0], told[0]["router"][0], rtol=1e-5)
    np.testing.assert_allclose(np.sum(told[0]["router"][0][0], axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize("experts", [4, 8])
def test_devices_send_their_own_rows_through_the_experts(experts):
    """Eight experts are sorted, four are not."""
    make = lambda: routing.Experts(  # noqa: E731
        WIDTH, experts, ratio=2, activation="gelu", init_std=0.0, dtype="float32", rngs=nnx.Rngs(0)
    )
    graphdef, state = nnx.split(toy.randomised(make))
    assert (experts >= routing.SORTED_FROM * TOP) == (experts == 8)
    x = jnp.asarray(RNG.normal(size=(8, 5, WIDTH)), jnp.float32)
    shares = jax.nn.softmax(jnp.asarray(RNG.normal(size=(8, 5, experts)), jnp.float32))

    def loss(state, x):
        return jnp.sum(nnx.merge(graphdef, state)(x, *routing.chosen(shares, TOP)) ** 2)

    alone = jax.value_and_grad(loss)(state, x)
    with jax.set_mesh(sharding.make_mesh(data=2, fsdp=2, model=2)):
        split = jax.jit(jax.value_and_grad(loss))(state, x)
    for ours, theirs in zip(jax.tree.leaves(split), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
