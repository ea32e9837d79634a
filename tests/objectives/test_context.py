"""What each loss reads, and what it must not: a change of one input moves exactly the losses it should."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.models.cross import CrossStack
from maskvlm_jax.models.text import TextEncoder
from maskvlm_jax.models.vision import ImageEncoder, patchify, unpatchify
from maskvlm_jax.objectives.context import Context
from maskvlm_jax.objectives.masked_positions import masked_token_capacity, positions_where
from maskvlm_jax.training.train_step import split_model
from tests.objectives.means import mean_of
from tests.reference import toy

LOSSES = ("masked_image", "masked_text", "contrastive", "matching")
WEIGHTS = dict(zip(LOSSES, (0.5, 2.0, 3.0, 4.0), strict=True))


def unoptimised(function, *examples):
    """The function compiled for arguments like these, in the least time."""
    return jax.jit(function).lower(*examples).compile({"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def learner():
    return toy.learner(depth=1, objectives={name: {"weight": weight} for name, weight in WEIGHTS.items()})


@pytest.fixture(scope="module")
def step(learner):
    """The output for a batch; one compiled program, so that equal numbers are equal bits."""
    graphdef, params = split_model(learner)
    run = unoptimised(lambda p, b: nnx.merge(graphdef, p)(b, jax.random.key(0)), params, toy.batch())
    return lambda batch: run(params, batch)


@pytest.fixture(scope="module")
def losses(step):
    """The losses of a batch by name."""

    def call(batch):
        values = step(batch).metrics
        return {name: float(values[f"{name}/loss"]) for name in LOSSES}

    return call


@pytest.fixture(scope="module")
def rebuilt(learner):
    """Predicted pixels of the masked patches of a batch."""
    graphdef, params = split_model(learner)

    def predict(params, batch):
        merged = nnx.merge(graphdef, params)
        return merged.objectives["masked_image"].predict(merged.context(batch))[0]

    run = unoptimised(predict, params, toy.batch())
    return lambda batch: np.asarray(run(params, batch))


def changed(losses, **arrays) -> set[str]:
    """The losses that a change of the batch moves."""
    before, after = losses(toy.batch()), losses(toy.batch() | arrays)
    return {name for name in LOSSES if before[name] != after[name]}


# --- one modality is masked at a time --------------------------------------------------------------------------------


def test_only_the_masked_text_loss_reads_the_masked_caption(losses):
    batch = toy.batch()
    other = np.where(batch["text_masked"], toy.FIRST_WORD, batch["tokens_masked"]).astype(np.int32)
    assert changed(losses, tokens_masked=other) == {"masked_text"}


def test_only_the_masked_text_loss_reads_which_tokens_are_masked(losses):
    assert changed(losses, text_masked=np.roll(toy.batch()["text_masked"], 1, axis=0)) == {"masked_text"}


def test_only_the_masked_image_loss_reads_the_image_mask(losses):
    assert changed(losses, image_masked=~np.roll(toy.batch()["image_masked"], 1, axis=1)) == {"masked_image"}


def test_the_masked_image_loss_has_no_gradient_to_the_masked_captions_mask_token(learner):
    """The mask token's embedding is read by the masked text view alone."""
    graphdef, params = split_model(learner)
    grads = {}
    for name in ("masked_image", "masked_text"):

        def loss(embedding, name=name):
            merged = nnx.merge(graphdef, params)
            merged.vlm.text_encoder.embedding[...] = embedding
            views = {"image": frozenset({"clean", "masked"}), "text": frozenset({"clean", "masked"})}
            return mean_of(merged.objectives[name](merged.context(toy.batch(), views=views), jax.random.key(0))[0])

        embedding = params["vlm"]["text_encoder"]["embedding"]
        grads[name] = np.asarray(unoptimised(jax.grad(loss), embedding)(embedding))[toy.MASK]
    assert np.all(grads["masked_image"] == 0.0)
    assert np.any(grads["masked_text"] != 0.0)


# --- masked image modelling ------------------------------------------------------------------------------------------


def test_rebuilt_pixels_do_not_depend_on_what_the_masked_patches_showed(rebuilt):
    batch = toy.batch()
    patches = np.array(patchify(batch["image"], toy.PATCH))
    patches[batch["image_masked"]] = np.random.default_rng(5).normal(size=patches[batch["image_masked"]].shape)
    noisy = np.asarray(unpatchify(patches, toy.PATCH))
    assert np.any(noisy != batch["image"])
    np.testing.assert_array_equal(rebuilt(batch | {"image": noisy}), rebuilt(batch))


def test_rebuilt_pixels_depend_on_the_visible_patches_and_on_the_caption(rebuilt):
    batch = toy.batch()
    for change in ({"image": batch["image"] + 1}, {"tokens": np.roll(batch["tokens"], 1, axis=0)}):
        difference = np.abs(rebuilt(batch | change) - rebuilt(batch))
        assert np.all(difference.max(axis=(1, 2)) > 1e-4)


def test_the_decoder_itself_reads_the_caption(learner, rebuilt, monkeypatch):
    objective, project = learner.objectives["masked_image"], CrossStack.project

    def without_text_for_the_decoder(self, context, valid=None):
        return project(self, jnp.zeros_like(context) if self is objective.decoder else context, valid)

    monkeypatch.setattr(CrossStack, "project", without_text_for_the_decoder)
    blind = unoptimised(lambda batch: objective.predict(learner.context(batch))[0], toy.batch())(toy.batch())
    assert np.all(np.abs(blind - rebuilt(toy.batch())).max(axis=(1, 2)) > 1e-4)


def test_the_target_is_read_at_masked_patches_only(learner):
    objective, batch = learner.objectives["masked_image"], toy.batch()
    ctx = learner.context(batch)
    ctx.image("masked")  # encoded before the picture changes: only the target sees the change
    before = np.asarray(objective(ctx, jax.random.key(0))[0].value)
    for hidden, moves in ((~batch["image_masked"], False), (batch["image_masked"], True)):
        patches = np.array(patchify(batch["image"], toy.PATCH))
        patches[hidden] += 1e3
        ctx.batch = batch | {"image": unpatchify(patches, toy.PATCH)}
        assert np.all((np.asarray(objective(ctx, jax.random.key(0))[0].value) != before) == moves)


# --- padding and positions -------------------------------------------------------------------------------------------


def test_ids_at_padding_change_no_loss(losses):
    batch = toy.batch()
    other = {name: np.where(batch["token_valid"], batch[name], toy.VOCAB - 1) for name in ("tokens", "tokens_masked")}
    assert changed(losses, **{name: value.astype(np.int32) for name, value in other.items()}) == set()


def test_a_batch_of_one_has_finite_losses_and_gradients(learner):
    graphdef, params = split_model(learner)
    batch = toy.batch(size=1)
    run = unoptimised(jax.value_and_grad(lambda p, b: nnx.merge(graphdef, p)(b, jax.random.key(0))[0]), params, batch)
    loss, grads = run(params, batch)
    assert np.isfinite(loss)
    assert all(np.all(np.isfinite(grad)) for grad in jax.tree.leaves(grads))


def test_masked_positions_are_in_order_and_short_rows_are_padded_with_invalid_ones():
    masked = jnp.array([[0, 1, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], bool)
    ids, valid = positions_where(masked, 3)
    np.testing.assert_array_equal(valid, [[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(ids[0], [1, 3, 4])
    assert ids[1, 0] == 4


@pytest.mark.parametrize(("length", "ratio", "capacity"), [(30, 0.3, 9), (26, 0.3, 8), (3, 0.3, 1), (2, 0.3, 1)])
def test_there_is_room_for_every_masked_token_of_the_longest_caption(length, ratio, capacity):
    assert masked_token_capacity(length, ratio) == capacity


# --- views and calls -------------------------------------------------------------------------------------------------


class Recording(Context):
    """Remembers which views were read."""

    def image(self, view):
        self.read["image"].add(view)
        return super().image(view)

    def text(self, view):
        self.read["text"].add(view)
        return super().text(view)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("other", ["clean", "masked"])
def test_an_objective_reads_the_views_that_it_declares(name, other):
    changes = {label: {"other": other} for label in ("masked_image", "masked_text")}
    learner = toy.learner(depth=1, objectives=changes)
    read = {"image": set(), "text": set()}

    def run(batch):
        counts = {"masked_patch_count": toy.MASKED_PATCHES, "text_ratio": toy.TEXT_RATIO}
        ctx = Recording(learner.vlm, batch, **counts, views={})
        ctx.read = read
        return mean_of(learner.objectives[name](ctx, jax.random.key(0))[0])

    jax.eval_shape(run, toy.batch())
    assert learner.objectives[name].views == read


def test_each_encoder_is_called_once_a_step(monkeypatch):
    calls = SimpleNamespace(ImageEncoder=0, TextEncoder=0)
    for encoder in (ImageEncoder, TextEncoder):

        def counted(self, *args, call=encoder.__call__, name=encoder.__name__, **kwargs):
            setattr(calls, name, getattr(calls, name) + 1)
            return call(self, *args, **kwargs)

        monkeypatch.setattr(encoder, "__call__", counted)
    learner = toy.learner(depth=1)
    jax.eval_shape(lambda batch: learner(batch, jax.random.key(0))[0], toy.batch())
    assert (calls.ImageEncoder, calls.TextEncoder) == (1, 1)


def test_the_total_is_the_weighted_sum_of_the_means(step, losses):
    expected = sum(WEIGHTS[name] * loss for name, loss in losses(toy.batch()).items())
    np.testing.assert_allclose(float(step(toy.batch())[0]), expected, rtol=1e-6)
