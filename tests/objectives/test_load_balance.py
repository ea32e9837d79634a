"""The loss that balances experts is the paper's, over real positions, with a gradient of the mean shares alone."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskvlm_jax.objectives import load_balance, reduce
from maskvlm_jax.runtime.errors import UserError
from tests.objectives.means import mean_of
from tests.reference import numpy_experts

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 5, 4)).astype(np.float32)
SHARES = np.asarray(jax.nn.softmax(LOGITS))
REAL = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], bool)


def loss(shares, real=REAL):
    return mean_of(load_balance.balance_terms(jnp.asarray(shares), jnp.asarray(real)))


def objective(*stacks):
    """Loss and metrics of what stacks of blocks handed out: (router, routed), each with an axis of layers."""
    routers, routed = zip(*stacks, strict=True) if stacks else ((), ())
    ctx = SimpleNamespace(auxiliary={"router": list(routers), "routed": list(routed)})
    terms, metrics = load_balance.Objective(None, shared={}, rngs=None)(ctx, None)
    return mean_of(terms), metrics


def test_it_is_the_naive_one_over_real_positions():
    np.testing.assert_allclose(loss(SHARES), numpy_experts.balance(SHARES, REAL), rtol=1e-5)
    np.testing.assert_allclose(loss(SHARES, np.ones_like(REAL)), numpy_experts.balance(SHARES, REAL | True), rtol=1e-5)


def test_padded_positions_do_not_count():
    other = np.where(REAL[:, :, None], SHARES, np.eye(4, dtype=np.float32)[0])
    np.testing.assert_array_equal(loss(other), loss(SHARES))
    gradient = np.asarray(jax.grad(loss)(jnp.asarray(SHARES)))
    np.testing.assert_array_equal(np.any(gradient, axis=-1), REAL)


def test_it_is_one_where_experts_get_alike_and_their_number_where_one_gets_all():
    uniform = np.full((2, 4, 4), 0.25, np.float32)
    uniform += 1e-4 * (np.eye(4) - 0.25)  # each is the first choice of one position in four
    one = np.broadcast_to(np.eye(4, dtype=np.float32)[2], (2, 4, 4))
    real = np.ones((2, 4), bool)
    np.testing.assert_allclose(loss(uniform, real), 1.0, rtol=1e-5)
    np.testing.assert_allclose(loss(one, real), 4.0, rtol=1e-6)
    _, even = objective((uniform[None], real[None]))
    np.testing.assert_allclose([even["busiest"], even["entropy"]], [0.25, np.log(4)], rtol=1e-5)
    _, odd = objective((one[None], real[None]))
    np.testing.assert_allclose([odd["busiest"], odd["entropy"]], [1.0, 0.0], atol=1e-6)


def test_its_gradient_is_that_of_the_mean_shares_with_first_choices_held():
    count = REAL.sum()
    first = np.eye(4)[SHARES.argmax(axis=-1)]
    f = first[REAL].sum(axis=0) / count
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(SHARES)), 4 * REAL[:, :, None] * f / count, rtol=1e-5)


def test_blocks_and_passes_weigh_the_same_however_many_positions_they_have():
    long = np.asarray(jax.nn.softmax(RNG.normal(size=(2, 3, 9, 4)))).astype(np.float32)  # two layers of another pass
    real = np.ones((2, 3, 9), bool)
    found, _ = objective((SHARES[None], REAL[None]), (long, real))
    each = [numpy_experts.balance(s, r) for s, r in ((SHARES, REAL), (long[0], real[0]), (long[1], real[1]))]
    np.testing.assert_allclose(found, np.mean(each), rtol=1e-5)


def test_parts_of_a_batch_give_the_loss_and_gradient_of_the_whole():
    def of_part(shares, real, counts):
        return reduce.loss_of([load_balance.balance_terms(shares, real)], counts)[0]

    shares, real = jnp.asarray(SHARES), jnp.asarray(REAL)
    parts = [slice(i, i + 1) for i in range(3)]
    each = [reduce.count(load_balance.balance_terms(shares[part], real[part])) for part in parts]
    counts = [jax.tree.map(lambda *x: sum(x) / 3, *each)]
    whole = jax.value_and_grad(lambda s: of_part(s, real, None))(shares)
    cut = [jax.value_and_grad(lambda s, part=part: of_part(s[part], real[part], counts))(shares) for part in parts]
    for ours, theirs in zip(jax.tree.map(lambda *x: sum(x) / 3, *cut), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_a_model_without_routed_blocks_has_nothing_to_balance():
    with pytest.raises(UserError, match=r"load_balance balances routed experts, and no block has any; set its weight"):
        objective()
