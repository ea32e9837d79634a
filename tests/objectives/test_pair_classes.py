"""Classes of pairs: the loss and its gradient against NumPy, and a second pair that is what a first one would be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.models.text import TextEncoder
from maskvlm_jax.models.vision import ImageEncoder
from maskvlm_jax.objectives import pair_classes
from maskvlm_jax.objectives.full_batch import FullBatch
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.training.train_step import split_model
from tests.objectives.means import mean_of
from tests.reference import numpy_losses, toy

BLOCK = {"width": toy.WIDTH, "heads": toy.HEADS, "mlp_ratio": 2, "dropout": 0.0, "depth": 1, "norm": "post"}
FUSIONS = {
    "both streams": {**BLOCK, "kind": "cross", "streams": "both"},
    "text alone": {**BLOCK, "kind": "cross", "streams": "text"},
    "joint": {**BLOCK, "kind": "joint"},
}
SECOND = {
    "nothing": {},
    "picture": {"image": "other"},
    "text": {"text": "other"},
    "both": {"image": "other", "text": "other"},
}
CLASSES = 3
KEY = jax.random.key(0)


@functools.cache
def make_learner(*, fusion="both streams", second="nothing", combine="concat"):
    line = {"name": "pair_classes", "weight": 1.0, "classes": CLASSES, "second": SECOND[second], "combine": combine}
    return toy.learner(only={"pairs": line}, more={"fusion": FUSIONS[fusion]})


def make_batch(size=4, seed=0):
    """A batch with the arrays of a second pair and a class."""
    other = toy.batch(size, seed + 100)
    label = np.random.default_rng(seed).integers(0, CLASSES, size).astype(np.int32)
    more = {"other": other["image"], "other_tokens": other["tokens"], "other_valid": other["token_valid"]}
    return toy.batch(size, seed) | more | {"label": label}


def second_first(batch, replaced):
    """The batch whose first pair is what the second one is."""
    places = {"image": {"image": "other"}, "text": {"tokens": "other_tokens", "token_valid": "other_valid"}}
    return batch | {own: batch[there] for modality in replaced for own, there in places[modality].items()}


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("second", "combine"), [("nothing", "concat"), ("both", "compare")])
def test_the_loss_and_its_gradient_are_those_of_the_equation(second, combine):
    learner = make_learner(second=second, combine=combine)
    (graphdef, params), batch = split_model(learner), make_batch()
    head = params["objectives"]["pairs"]

    @jax.jit
    def loss(head):
        merged = nnx.merge(graphdef, {**params, "objectives": {"pairs": head}})
        objective, ctx = merged.objectives["pairs"], merged.context(batch)
        terms, metrics = objective(ctx, KEY)
        return mean_of(terms), (metrics["accuracy"], objective.logits(ctx))

    (found, (accuracy, logits)), gradient = jax.value_and_grad(loss, has_aux=True)(head)
    ctx = learner.context(batch)
    vectors = [np.asarray(ctx.pair_PD)]
    if second != "nothing":
        vectors.append(np.asarray(learner.context(second_first(batch, SECOND[second])).pair_PD))
    expected = numpy_losses.pair_classes(vectors, jax.tree.map(np.asarray, head), batch["label"], combine=combine)
    np.testing.assert_allclose(logits, expected.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found, expected.loss, rtol=1e-5)
    np.testing.assert_allclose(accuracy, np.mean(expected.logits.argmax(axis=1) == batch["label"]))
    toy.assert_trees_close(gradient, expected.gradient, 2e-5)


def test_a_second_pair_has_a_gradient_down_to_its_pixels():
    learner, batch = make_learner(second="picture", combine="compare"), make_batch()
    gradient = jax.jit(jax.grad(lambda other: learner({**batch, "other": other}, KEY).loss))(batch["other"])
    assert np.all(np.abs(gradient).max(axis=(1, 2, 3)) > 0)


# --- the second pair -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fusion", "replaced"),
    [("both streams", "picture"), ("both streams", "text"), ("text alone", "picture"), ("joint", "both")],
)
def test_a_second_pair_is_bit_for_bit_what_it_would_be_in_the_first_place(fusion, replaced):
    learner, batch, replaced = make_learner(fusion=fusion, second=replaced), make_batch(), SECOND[replaced]
    objective = learner.objectives["pairs"]

    @jax.jit
    def replacing(batch):
        return learner.context(batch).replacing("second", objective._replacements(batch)).pair_PD

    straight = jax.jit(lambda batch: learner.context(batch).pair_PD)
    np.testing.assert_array_equal(replacing(batch), straight(second_first(batch, replaced)))
    assert np.any(np.asarray(replacing(batch)) != np.asarray(straight(batch)))


@pytest.mark.parametrize(
    ("replaced", "pictures", "texts"), [("picture", 2, 1), ("text", 1, 2), ("both", 2, 2), ("nothing", 1, 1)]
)
def test_what_is_not_replaced_is_encoded_once(monkeypatch, replaced, pictures, texts):
    learner = make_learner(second=replaced)
    calls = {ImageEncoder: 0, TextEncoder: 0}
    for encoder in calls:

        def counted(self, *args, call=encoder.__call__, encoder=encoder, **kwargs):
            calls[encoder] += 1
            return call(self, *args, **kwargs)

        monkeypatch.setattr(encoder, "__call__", counted)
    jax.eval_shape(lambda batch: learner(batch, KEY).loss, make_batch())
    assert calls == {ImageEncoder: pictures, TextEncoder: texts}


def test_a_second_picture_is_read_where_features_of_the_first_are_kept():
    learner, batch = make_learner(second="picture"), make_batch()
    features = {"image_features": learner.context(batch).image("clean")}
    ctx = learner.context({**batch, **features}).replacing("second", {"image": batch["other"]})
    expected = learner.context(second_first(batch, ["image"])).pair_PD
    np.testing.assert_allclose(ctx.pair_PD, expected, rtol=1e-5, atol=1e-6)


def test_only_the_clean_view_of_what_is_replaced_is_encoded_and_the_moving_average_sees_it_too():
    learner, batch = make_learner(), make_batch()
    views = {modality: frozenset({"clean", "masked"}) for modality in ("image", "text")}
    ctx = learner.context(batch, views=views, teacher=learner.context(batch))
    other = ctx.replacing("second", {"image": batch["other"]})
    other.image("clean")
    assert other._cache["image"].keys() == {"clean"}
    other.text("clean")
    assert other._cache["text"].keys() == {"clean", "masked"} and other._cache["text"] is ctx._cache["text"]
    np.testing.assert_array_equal(other.teacher.batch["image"], batch["other"])
    np.testing.assert_array_equal(ctx.teacher.batch["image"], batch["image"])


def test_dropout_of_the_two_pairs_is_drawn_apart():
    learner, batch = make_learner(), make_batch()
    ctx = learner.context(batch, key=KEY)
    other = ctx.replacing("second", {"image": batch["image"]})
    assert np.any(jax.random.key_data(ctx.key("image")) != jax.random.key_data(other.key("image")))
    assert learner.context(batch).replacing("second", {"image": batch["image"]}).key("image") is None


# --- microbatches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["text alone", pytest.param("joint", marks=pytest.mark.slow)])
def test_microbatches_give_the_loss_and_the_gradient_of_the_whole_batch(fusion):
    learner, batch = make_learner(fusion=fusion, second="text", combine="compare"), make_batch(size=6)
    graphdef, params = split_model(learner)

    @jax.jit
    def of(params, batch):
        return jax.value_and_grad(lambda p: nnx.merge(graphdef, p)(batch, KEY).loss)(params)

    @jax.jit
    def of_part(params, whole, number):
        part = {name: value.reshape(-1, 2, *value.shape[1:])[:, number] for name, value in whole.items()}
        full = FullBatch(whole, *learner.embeddings(whole), number, 2)
        return jax.value_and_grad(lambda p: nnx.merge(graphdef, p)(part, KEY, full=full).loss)(params)

    loss, gradient = of(params, batch)
    whole = jax.tree.map(jnp.asarray, batch)
    parts = [of_part(params, whole, number) for number in range(2)]
    np.testing.assert_allclose(np.mean([part for part, _ in parts]), loss, rtol=1e-5)
    toy.assert_trees_close(jax.tree.map(lambda a, b: (a + b) / 2, *(grads for _, grads in parts)), gradient, 2e-5)


# --- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 1}, "there are 1 classes of a pair; give their number, classes, two at least"),
        ({"classes": 2, "second": {"picture": "b"}}, "second has 'picture'; it names the fields of a second image"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        pair_classes.Objective.needs(arguments)


def test_the_fields_that_are_read_are_told():
    needs = pair_classes.Objective.needs({"classes": 2, "label": "same", "second": SECOND["both"]})
    assert needs.fusion and needs.fields == ("same", "other", "other")
