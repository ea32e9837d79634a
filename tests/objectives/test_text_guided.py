"""Patches that the caption speaks of are hidden, and words stay as the host has masked them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.objectives.maskers import base, text_guided
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import rules
from maskvlm_jax.training.build import model_arguments
from tests.conftest import toy_config
from tests.models.test_joint import SIZES, batch_for
from tests.objectives.test_maskers import A, FakeTeacher
from tests.reference import numpy_prototypes as oracle
from tests.reference import toy
from tests.reference.numpy_losses import unit

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
NOISE = np.asarray(base.gumbel(KEY, jnp.arange(6), 4))


def hidden(masker, teacher, key=KEY):
    masks = masker(teacher, key)
    assert masks.text_masked_BL is None
    return [np.flatnonzero(row).tolist() for row in np.asarray(masks.image_masked_BN)]


@pytest.mark.parametrize("hardness", [0.0, 1.0, 30.0])
def test_patches_are_hidden_by_the_attention_of_the_start_token(hardness):
    score = [np.log(np.mean([A[row, h, 0] for h in range(2)], axis=0)) for row in range(6)]
    expected = [oracle.chosen(hardness * score[row] + NOISE[row], 2) for row in range(6)]
    assert hidden(text_guided.Masker(hardness=hardness), FakeTeacher(A, None)) == expected


def test_patches_are_drawn_in_proportion_to_it():
    attention = np.full((6, 2, 7, 4), 0.1, np.float32)
    attention[:, :, 0, 2] = 0.3
    teacher, counts = FakeTeacher(attention, None), np.zeros(4)
    teacher.batch["image_masked"] = jnp.asarray(np.tile(np.arange(4) == 0, (6, 1)))
    draw = jax.jit(lambda key: text_guided.Masker()(teacher, key).image_masked_BN)
    for key in jax.random.split(jax.random.key(0), 1_000):
        counts += np.asarray(draw(key)).sum(axis=0)
    np.testing.assert_allclose(counts / 6_000, [1 / 6, 1 / 6, 1 / 2, 1 / 6], atol=0.02)


def test_an_example_is_masked_alike_whatever_batch_it_is_in():
    whole = hidden(text_guided.Masker(), FakeTeacher(A, None))
    part = hidden(text_guided.Masker(), FakeTeacher(A[1::2], None, rows=range(1, 6, 2)))
    assert part == whole[1::2]


@pytest.fixture(scope="module")
def learner():
    config = toy_config("recipe=semmim", **SIZES)
    rules.check(config)
    return toy.randomised(lambda: Learner(**model_arguments(config), rngs=nnx.Rngs(0)))


def test_as_many_patches_are_hidden_as_the_host_hid_and_words_as_the_host_did(learner):
    host = batch_for(learner)

    def both(host):
        ctx = learner._context_of_step(host, jax.random.key(0), teacher=learner)
        return ctx.batch, ctx.teacher.batch

    ours, taught = jax.jit(both).lower(host).compile({"xla_backend_optimization_level": 0})(host)
    ours = {name: np.asarray(value) for name, value in ours.items()}
    np.testing.assert_array_equal(ours["image_masked"].sum(axis=1), host["image_masked"].sum(axis=1))
    assert (ours["image_masked"] != host["image_masked"]).any()
    for name in host.keys() - {"image_masked"}:
        np.testing.assert_array_equal(ours[name], host[name])
    np.testing.assert_array_equal(ours["image_masked"], taught["image_masked"])


def test_patches_are_hidden_by_their_cosine_with_the_start_token():
    image, text = RNG.normal(size=(6, 1 + 4, 8)), RNG.normal(size=(6, 7, 8))
    teacher = FakeTeacher(A, None)
    teacher.vlm = SimpleNamespace(image_encoder=SimpleNamespace(prefix=1))
    teacher.image, teacher.text = (lambda view, x=x: jnp.asarray(x, jnp.float32) for x in (image, text))
    expected = [oracle.chosen(5.0 * unit(image[row, 1:]) @ unit(text[row, 0]) + NOISE[row], 2) for row in range(6)]
    assert hidden(text_guided.Masker(by="cosine", hardness=5.0), teacher) == expected


@pytest.mark.parametrize(
    ("masker", "message"),
    [
        ({"by": "colour"}, r"by is 'colour'; choose among attention, cosine"),
        ({"hardness": -1.0}, r"hardness is -1; give at least 0"),
        ({"sharpness": 1.0}, "unexpected keyword argument 'sharpness'"),
    ],
)
def test_what_does_not_fit_is_refused(masker, message):
    config = toy_config("recipe=semmim", masking__image_cell=1)
    with config.unlocked():
        config.masking.masker.update(masker)
    with pytest.raises(UserError, match=message):
        rules.check(config)
