"""Masks that are chosen on the device by what the teacher attends to."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.models.fusion import Attention
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.objectives.maskers import attended
from maskvlm_jax.runtime import sharding
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import rules
from maskvlm_jax.training.build import model_arguments
from tests.conftest import toy_config
from tests.models.test_joint import SIZES, batch_for
from tests.reference import toy
from tests.training.steps import first_gradients, one_device, share_apart, train

MASKER = {"name": "attended", "layer": 1}


def config_with(masker=MASKER, recipe="maskvlm", **values):
    config = toy_config(f"recipe={recipe}", optim__ema_decay=0.9, masking__text_corruption="mask", **values)
    with config.unlocked():
        config.masking.masker = masker
    rules.check(config)
    return config


@pytest.fixture(
    scope="module",
    params=["maskvlm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("albef", "mamo")), "m3ae"],
)
def learner(request):
    config = config_with(recipe=request.param, **SIZES)
    return toy.randomised(lambda: Learner(**model_arguments(config), rngs=nnx.Rngs(0)))


def masked(learner, key=0, **options):
    """The context that the objectives read, and the batch that the host made."""
    batch = batch_for(learner)
    ctx = learner._context_of_step(batch, jax.random.key(key), teacher=learner, **options)
    return {name: np.asarray(value) for name, value in ctx.batch.items()}, batch, ctx


def test_as_many_are_hidden_as_the_host_hid_and_none_that_may_not_be(learner):
    ours, host, ctx = masked(learner)
    for name in ("image_masked", "text_masked"):
        np.testing.assert_array_equal(ours[name].sum(axis=1), host[name].sum(axis=1))
        assert (ours[name] != host[name]).any()
    hidden, length = ours["text_masked"], host["token_valid"].sum(axis=1, keepdims=True)
    place = np.arange(hidden.shape[1])
    assert not (hidden & ((place == 0) | (place >= length - 1))).any()
    seen = np.where(hidden, learner.vlm.text_encoder.mask_id, host["tokens"])
    np.testing.assert_array_equal(ours["tokens_masked"], seen)
    assert ours.keys() == host.keys()
    for name in host.keys() - {"image_masked", "text_masked", "tokens_masked"}:
        np.testing.assert_array_equal(ours[name], host[name])
    for name in ("image_masked", "text_masked", "tokens_masked"):
        np.testing.assert_array_equal(
            ours[name], ctx.teacher.batch[name], "the teacher's targets are of the same masks"
        )


def test_the_masks_are_a_function_of_the_key(learner):
    (first, _, _), (same, _, _), (other, _, _) = (masked(learner, key) for key in (0, 0, 1))
    np.testing.assert_array_equal(first["image_masked"], same["image_masked"])
    assert (first["image_masked"] != other["image_masked"]).any()


def test_counts_follow_from_the_hosts_masks_without_the_teachers_pass(learner):
    batch, key = batch_for(learner), jax.random.key(0)
    counts = jax.tree.map(lambda x: x / len(batch["tokens"]), learner.counts(batch, key, teacher=learner))
    whole, counted = (learner(batch, key, teacher=learner, counts=given) for given in (None, counts))
    np.testing.assert_allclose(counted.loss, whole.loss, rtol=1e-5)


class FakeTeacher:
    """Attention that is given, for six rows of four patches and five words."""

    def __init__(self, text_BHLN, image_BHNL, rows=range(6)):
        self._attention = Attention(jnp.asarray(text_BHLN), None if image_BHNL is None else jnp.asarray(image_BHNL))
        self.own_rows = jnp.asarray(list(rows))
        valid = np.arange(7) < np.array([7, 7, 7, 6, 6, 5])[:, None]
        self.batch = {
            "token_valid": jnp.asarray(valid[list(rows)]),
            "image_masked": jnp.asarray(np.tile([True, True, False, False], (len(self.own_rows), 1))),
            "text_masked": jnp.asarray(np.tile(np.arange(7) == 1, (len(self.own_rows), 1))),
        }

    def attention(self, layer):
        return self._attention


RNG = np.random.default_rng(0)
A, B = RNG.random((6, 2, 7, 4)).astype(np.float32), RNG.random((6, 2, 4, 7)).astype(np.float32)


def test_top_hides_what_has_the_highest_scores():
    both = attended.Masker(sampler="top")(FakeTeacher(A, B), jax.random.key(0))
    alone = attended.Masker(sampler="top")(FakeTeacher(A, None), jax.random.key(0))
    for row, length in enumerate((7, 7, 7, 6, 6, 5)):
        words = range(1, length - 1)
        patches = np.mean([A[row, h, t] for h in range(2) for t in words], axis=0)
        assert set(np.flatnonzero(both.image_masked_BN[row])) == set(np.argsort(patches)[-2:])
        score = {t: np.mean([B[row, h, n, t] for h in range(2) for n in range(4)]) for t in words}
        assert np.flatnonzero(both.text_masked_BL[row]).tolist() == [max(score, key=score.get)]
        score = {t: max(np.mean([A[row, h, t, n] for h in range(2)]) for n in range(4)) for t in words}
        assert np.flatnonzero(alone.text_masked_BL[row]).tolist() == [max(score, key=score.get)]


def test_hint_shows_each_of_the_highest_tenth_half_of_the_time_and_hides_the_next_one_instead():
    rng, patches = np.random.default_rng(1), 21  # of which 3 may be shown
    weights = rng.random((6, 2, 7, patches)).astype(np.float32)
    teacher = FakeTeacher(weights / weights.sum(axis=3, keepdims=True), B)
    teacher.batch["image_masked"] = jnp.asarray(np.arange(patches) < np.full((6, 1), 8))
    draw = jax.jit(lambda key: attended.Masker(sampler="hint")(teacher, key))
    found = [draw(key) for key in jax.random.split(jax.random.key(0), 400)]
    hidden = np.stack([masks.image_masked_BN for masks in found])
    assert set(hidden.sum(axis=2).ravel()) == {8}
    for row, length in enumerate((7, 7, 7, 6, 6, 5)):
        score = np.mean(weights[row] / weights[row].sum(axis=2, keepdims=True), axis=0)[1 : length - 1].mean(axis=0)
        order = np.argsort(-score)
        np.testing.assert_allclose(hidden[:, row, order[:3]].mean(axis=0), 0.5, atol=0.12)
        assert hidden[:, row, order[3:8]].all() and not hidden[:, row, order[11:]].any()
        shown = 3 - hidden[:, row, order[:3]].sum(axis=1)
        np.testing.assert_array_equal(hidden[:, row, order[8:11]], np.arange(3) < shown[:, None])
    words = np.stack([masks.text_masked_BL for masks in found])
    assert set(words.sum(axis=2).ravel()) == {1}
    assert not np.any(words & ~np.stack([np.asarray(teacher.batch["token_valid"])] * 400))


@pytest.mark.parametrize("sampler", ["gumbel", "top", "hint"])
def test_where_all_words_must_be_hidden_they_are_and_no_special_one(sampler):
    teacher = FakeTeacher(A, B)
    teacher.batch["text_masked"] = jnp.asarray(np.tile(np.arange(7) < 3, (6, 1)))  # all three of the shortest text
    hidden = np.asarray(attended.Masker(sampler=sampler)(teacher, jax.random.key(0)).text_masked_BL)
    assert np.flatnonzero(hidden[5]).tolist() == [1, 2, 3]
    np.testing.assert_array_equal(hidden.sum(axis=1), 3)


def test_equal_scores_hide_every_patch_and_word_as_often_as_any_other():
    even = np.full((6, 2, 7, 4), 1 / 4, np.float32), np.full((6, 2, 4, 7), 1 / 7, np.float32)
    draw = jax.jit(lambda key: attended.Masker()(FakeTeacher(*even), key))
    counts = [0, 0]
    for key in jax.random.split(jax.random.key(0), 1_000):
        counts = [count + np.asarray(hidden)[:3].sum(axis=0) for count, hidden in zip(counts, draw(key), strict=True)]
    np.testing.assert_allclose(counts[0] / 3_000, 2 / 4, atol=0.03)
    np.testing.assert_allclose(counts[1] / 3_000, [0, 1 / 5, 1 / 5, 1 / 5, 1 / 5, 1 / 5, 0], atol=0.03)


def test_gumbel_draws_in_proportion_to_the_scores():
    image = np.full((6, 2, 4, 7), 0.1, np.float32)
    image[:, :, :, 2] = 0.3  # word 2 of words 1 .. 5: 0.3 of 0.7
    masker, counts = attended.Masker(), np.zeros(7)
    draw = jax.jit(lambda key: masker(FakeTeacher(A, image), key).text_masked_BL)
    for key in jax.random.split(jax.random.key(0), 2_000):
        counts += np.asarray(draw(key))[:3].sum(axis=0)
    np.testing.assert_allclose(counts / 6_000, [0, 1 / 7, 3 / 7, 1 / 7, 1 / 7, 1 / 7, 0], atol=0.02)


def test_a_picture_without_a_word_has_its_patches_drawn_alike():
    teacher, counts = FakeTeacher(A, B), np.zeros(4)
    teacher.batch["token_valid"] = jnp.asarray(np.tile(np.arange(7) < 2, (6, 1)))
    draw = jax.jit(lambda key: attended.Masker()(teacher, key).image_masked_BN)
    for key in jax.random.split(jax.random.key(0), 500):
        counts += np.asarray(draw(key)).sum(axis=0)
    np.testing.assert_allclose(counts / counts.sum(), 1 / 4, atol=0.02)


def test_an_example_is_masked_alike_whatever_batch_it_is_in():
    whole = attended.Masker()(FakeTeacher(A, B), jax.random.key(3))
    part = attended.Masker()(FakeTeacher(A[1::2], B[1::2], rows=range(1, 6, 2)), jax.random.key(3))
    for ours, theirs in zip(part, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs[1::2])


@pytest.mark.slow
def test_microbatches_give_the_gradients_of_the_full_batch():
    whole, parts = (first_gradients(config_with(optim__accumulate=n)) for n in (1, 4))
    toy.assert_trees_close(parts[0], whole[0], tolerance=2e-4)


@pytest.mark.slow
def test_it_trains_alike_on_one_device_and_on_several():
    config = config_with()
    (one, lines), (several, other) = (
        train(config, mesh, 3) for mesh in (one_device(), sharding.make_mesh(data=2, fsdp=2, model=2))
    )
    assert share_apart(one.params, several.params) < 0.02
    np.testing.assert_allclose([line["loss"] for line in lines], [line["loss"] for line in other], rtol=1e-4)


@pytest.mark.parametrize(
    ("masker", "values", "message"),
    [
        ({"name": "nothing"}, {}, "there is no masker 'nothing'; choose among attended"),
        ({"layer": 1}, {}, r"masking\.masker has no name"),
        (MASKER | {"sampler": "best"}, {}, r"masking\.masker\.sampler is 'best'; choose among gumbel, top, hint"),
        (MASKER | {"layers": 1}, {}, r"masking\.masker: .*unexpected keyword argument 'layers'"),
        (MASKER, {"optim__ema_decay": 0.0}, r"masking\.masker reads a moving average"),
        (MASKER, {"masking__whole_word": True}, r"set masking\.whole_word to False"),
        (MASKER, {"masking__text_corruption": "bert"}, r"set masking\.text_corruption to mask"),
    ],
)
def test_what_does_not_go_with_it_is_refused(masker, values, message):
    config = toy_config(**{"optim__ema_decay": 0.9, **values})
    with config.unlocked():
        config.masking.masker = masker
    with pytest.raises(UserError, match=message):
        rules.check(config)


def test_what_reads_no_attention_needs_no_fusion():
    config = toy_config("recipe=clip", optim__ema_decay=0.9)
    for name, options, refused in (
        ("attended", {}, True),
        ("text_guided", {"by": "attention"}, True),
        ("text_guided", {"by": "cosine"}, False),
    ):
        with config.unlocked():
            config.masking.masker = {"name": name, **options}
        with pytest.raises(UserError, match="reads both modalities fused") if refused else contextlib.nullcontext():
            rules.check(config)
