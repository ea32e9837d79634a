"""What blocks hand out beside their output reaches whoever asks for it, and costs nothing where nobody does."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.models import auxiliary
from maskvlm_jax.models.block import BlockSpec
from maskvlm_jax.models.stack import Stack
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.settings import rules
from maskvlm_jax.training.build import model_arguments
from maskvlm_jax.training.train_step import split_model
from tests.conftest import toy_config
from tests.models.test_joint import SIZES, batch_for
from tests.reference import toy

TALKING = """
import jax.numpy as jnp

from maskvlm_jax.models import auxiliary
from maskvlm_jax.models.blocks import dense


class Block(dense.Block):
    def __call__(self, x_BSD, valid_BS=None, key=None, read_BR=None):
        y_BSD = super().__call__(x_BSD, valid_BS, key, read_BR)
        auxiliary.hand_out("size", jnp.mean(y_BSD.astype(jnp.float32) ** 2))
        return y_BSD
"""
BALANCE = """
import jax.numpy as jnp

from maskvlm_jax.objectives import base


class Objective(base.Objective):
    reads_auxiliary = True

    def __init__(self, vlm, *, shared, rngs):
        self.views = {"image": frozenset(), "text": frozenset()}

    def __call__(self, ctx, key):
        sizes = jnp.concatenate(ctx.auxiliary["size"])
        return base.Terms(sizes), {"layers": jnp.float32(len(sizes))}
"""


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    path = tmp_path_factory.mktemp("blocks") / "talking.py"
    path.write_text(TALKING)
    return str(path)


@pytest.fixture(scope="module")
def balance(tmp_path_factory):
    path = tmp_path_factory.mktemp("losses") / "balance.py"
    path.write_text(BALANCE)
    return str(path)


def stack_of(kind, **options):
    spec = BlockSpec(toy.WIDTH, toy.HEADS, mlp_ratio=2, kind=kind, **options)
    return toy.randomised(lambda: Stack(spec, 3, rngs=nnx.Rngs(0)))


def run(stack, x):
    x = stack.scan(lambda block, x, _: block(x), x, stop=2)
    return stack.once(2, lambda block, x: block(x), x)


X = np.random.default_rng(0).normal(size=(2, 5, toy.WIDTH)).astype(np.float32)


@pytest.mark.parametrize(
    "options", [{}, {"unroll": True}, {"remat": "full"}, {"remat": "dots", "unroll": True}], ids=str
)
def test_values_of_all_layers_come_out_in_order_with_their_gradient(talking, options):
    stack = stack_of(talking, **options)
    graphdef, params = split_model(stack)

    def sizes(params, x):
        with auxiliary.collecting() as values:
            run(nnx.merge(graphdef, params), x)
        return jnp.concatenate(values["size"])

    def one_by_one(params, x):
        model, found = nnx.merge(graphdef, params), []
        for layer in range(3):
            x = model.layer(layer)(x)
            found.append(jnp.mean(x**2))
        return jnp.stack(found)

    np.testing.assert_allclose(jax.jit(sizes)(params, X), one_by_one(params, X), rtol=1e-5)
    weights = jnp.array([1.0, -2.0, 3.0])
    gradients = (jax.grad(lambda p, f=f: jnp.sum(weights * f(p, X)))(params) for f in (sizes, one_by_one))
    toy.assert_trees_close(*gradients, tolerance=1e-4)


def test_where_nobody_asks_the_program_is_the_one_without_them(talking):
    dense, silent = (jax.make_jaxpr(partial(run, stack_of(kind)))(X) for kind in ("dense", talking))
    primitives = [[str(line.primitive) for line in jaxpr.eqns] for jaxpr in (dense, silent)]
    assert [kinds.count("scan") for kinds in primitives] == [1, 1]
    assert [len(jaxpr.eqns[primitives[0].index("scan")].outvars) for jaxpr in (dense, silent)] == [1, 1]
    with auxiliary.collecting() as values, auxiliary.collecting(wanted=False):
        run(stack_of(talking), X)
    assert values == {}


@pytest.mark.slow
@pytest.mark.parametrize("ema", [0.0, 0.99])
def test_a_loss_reads_what_the_passes_of_all_others_handed_out(talking, balance, ema):
    config = toy_config(**SIZES, model__image__kind=talking, model__image__depth=3, optim__ema_decay=ema)
    with config.unlocked():
        config.objectives.a_balance = {"name": balance, "weight": 0.5}  # its label comes first
    rules.check(config)
    learner = toy.randomised(lambda: Learner(**model_arguments(config), rngs=nnx.Rngs(0)))
    batch = batch_for(learner)
    teacher = learner if ema else None
    output = learner(batch, jax.random.key(0), teacher=teacher)
    assert output.metrics["a_balance/layers"] == 3, "one call for both views, and none of the teacher's"
    with auxiliary.collecting() as values:
        ctx = learner.context(batch, views={"image": frozenset({"clean", "masked"}), "text": frozenset()})
        ctx.image("clean")
    np.testing.assert_allclose(output.metrics["a_balance/loss"], np.mean(values["size"][0]), rtol=1e-5)
    others = sum(output.metrics[f"{label}/loss"] * w for label, w in learner.weights if label != "a_balance")
    np.testing.assert_allclose(output.loss, others + 0.5 * output.metrics["a_balance/loss"], rtol=1e-5)
