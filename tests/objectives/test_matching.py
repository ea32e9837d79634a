"""Matching: the naive cross entropy over three pairs an example, and hard negatives that are negatives."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.objectives import matching
from maskvlm_jax.objectives.context import Context
from maskvlm_jax.training.train_step import split_model
from tests.objectives.means import mean, mean_of
from tests.reference import numpy_losses, toy

DRAWS = 20_000
KEY = jax.random.key(0)
IDS = np.array([(0, 10), (0, 11), (2, 11), (3, 13), (4, 14)])  # 0 and 1 share a picture, 1 and 2 a caption


def similarity(size: int = 5) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(size, size)).astype(np.float32)


@pytest.fixture(scope="module")
def draws():
    """(DRAWS, B) negative columns of each row."""
    same = numpy_losses.same_pair(IDS)
    keys = jax.random.split(jax.random.key(0), DRAWS)
    draw = jax.jit(jax.vmap(lambda key: matching.sample_hard_negatives(key, similarity(), same)[0]))
    return np.asarray(draw(keys))


@pytest.mark.parametrize(
    "valid",
    [np.ones((4, 3), bool), np.array([[1, 1, 0], [1, 0, 1], [1, 0, 0], [1, 1, 1]], bool), np.array([[1, 0, 0]], bool)],
    ids=["all", "some missing", "batch of one"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mean_loss_is_the_naive_mean_over_valid_pairs(valid, dtype):
    logits = jnp.asarray(3 * np.random.default_rng(0).normal(size=(*valid.shape, 2)), dtype)
    matched = np.broadcast_to([True, False, False], valid.shape)
    value = matching.matching_loss(logits, matched)
    assert value.dtype == jnp.float32
    expected = numpy_losses.matching(np.asarray(logits, np.float32), valid)
    np.testing.assert_allclose(mean(value, valid), expected, rtol=1e-5)


def test_a_hard_negative_never_shares_picture_or_caption(draws):
    same = numpy_losses.same_pair(IDS)
    assert not np.any(same[np.arange(len(IDS)), draws])


def test_hard_negatives_follow_the_softmax_of_the_allowed_similarities(draws):
    frequency = np.stack([np.mean(draws == column, axis=0) for column in range(len(IDS))], axis=1)
    expected = numpy_losses.negative_probabilities(similarity(), numpy_losses.same_pair(IDS))
    deviation = np.sqrt(expected * (1 - expected) / DRAWS)
    assert np.all(np.abs(frequency - expected) <= 5 * deviation)


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_a_negative_is_found_at_extreme_similarities(scale):
    same = np.eye(3, dtype=bool)
    extreme = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]], np.float32) * scale
    extreme += np.eye(3, dtype=np.float32) * abs(scale)
    negative, found = matching.sample_hard_negatives(jax.random.key(0), extreme, same)
    assert np.all(found)
    np.testing.assert_array_equal(negative, [1, 2, 0] if scale > 0 else [2, 0, 1])


def test_a_row_without_a_candidate_says_so():
    same = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 1]], bool)
    _, found = matching.sample_hard_negatives(jax.random.key(0), similarity(3), same)
    np.testing.assert_array_equal(found, [False, True, True])


class FakeContext:
    """Features are a table by (picture, caption); remembers which pairs were asked for."""

    def __init__(self, similarity_BB: np.ndarray, same_pair_BB: np.ndarray, progress: float = 1.0):
        self.similarity_BB, self.same_pair_BB = jnp.asarray(similarity_BB), jnp.asarray(same_pair_BB)
        size = len(similarity_BB)
        self.progress = progress
        self.table = jnp.asarray(np.random.default_rng(2).normal(size=(size, size, toy.WIDTH)))

    ramp = Context.ramp

    @property
    def own_rows(self):
        return jnp.arange(len(self.same_pair_BB))

    def fuse_with_negatives(self, image_of_text_B, text_of_image_B, shares):
        own_B, self.shares = self.own_rows, shares
        images_B3 = jnp.stack([own_B, image_of_text_B, own_B], axis=1)
        self.pairs = images_B3.ravel(), jnp.stack([own_B, own_B, text_of_image_B], axis=1).ravel()
        return self.table[self.pairs]


def objective(**options) -> matching.Objective:
    vlm = SimpleNamespace(text_encoder=SimpleNamespace(width=toy.WIDTH), pair_width=toy.WIDTH)
    return toy.randomised(lambda: matching.Objective(vlm, shared=toy.shared(), **options, rngs=nnx.Rngs(0)))


def test_local_negatives_are_of_the_same_share_and_its_only_example_has_none(monkeypatch):
    monkeypatch.setattr(matching.sharding, "batch_shares", lambda: 3)
    same = np.eye(6, dtype=bool)
    same[4, 5] = same[5, 4] = True  # the last share has one pair twice
    module = objective(pool="local")

    def draw(key):
        ctx = FakeContext(np.zeros((6, 6), np.float32), same)
        terms, _ = module(ctx, key)
        return *ctx.pairs, mean_of(terms)

    images, texts, losses = jax.vmap(draw)(jax.random.split(jax.random.key(0), 50))
    share = lambda ids: np.asarray(ids).reshape(50, 6, 3) // 2  # noqa: E731
    np.testing.assert_array_equal(share(images)[:, :4], share(texts)[:, :4])
    assert np.all(np.isfinite(losses))


def test_an_example_is_itself_then_a_wrong_picture_then_a_wrong_caption():
    ctx, size = FakeContext(similarity(), numpy_losses.same_pair(IDS)), len(IDS)
    objective()(ctx, jax.random.key(0))
    images, texts = (np.asarray(ids).reshape(size, 3).T for ids in ctx.pairs)
    own, same = np.arange(size), numpy_losses.same_pair(IDS)
    np.testing.assert_array_equal(images[[0, 2]], [own, own])
    np.testing.assert_array_equal(texts[[0, 1]], [own, own])
    assert not np.any(same[images[1], own])
    assert not np.any(same[own, texts[2]])


@pytest.mark.parametrize("ids", [IDS, np.array([(0, 10), (0, 11), (0, 12)]), IDS[:1]], ids=["some", "none", "one"])
def test_loss_labels_the_pair_itself_matched_and_leaves_out_examples_without_a_negative(ids):
    same, module = numpy_losses.same_pair(ids), objective()
    ctx = FakeContext(similarity(len(ids)), same)
    terms, _ = module(ctx, jax.random.key(0))
    pairs = np.asarray(ctx.table[ctx.pairs])
    kernel, bias = np.asarray(module.to_match.kernel[...]), np.asarray(module.to_match.bias[...])
    logits = (pairs @ kernel + bias).reshape(len(ids), 3, 2)
    has_negative = ~np.all(same, axis=1)
    valid = np.stack([np.ones(len(ids), bool), has_negative, has_negative], axis=1)
    np.testing.assert_allclose(mean_of(terms), numpy_losses.matching(logits, valid), rtol=1e-5)


def test_wrong_pictures_and_wrong_captions_are_drawn_by_the_softmax_and_independently():
    # Symmetric: drawn with one key, both negatives would be the same number every time.
    ctx = FakeContext(np.zeros((3, 3), np.float32), np.eye(3, dtype=bool))
    module = objective()

    def draw(key):
        module(ctx, key)
        image_ids, text_ids = (ids.reshape(3, 3).T for ids in ctx.pairs)
        return image_ids[1, 0], text_ids[2, 0]

    images, texts = map(np.asarray, jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), DRAWS)))
    joint = [np.mean((images == i) & (texts == t)) for i in (1, 2) for t in (1, 2)]
    np.testing.assert_allclose(joint, 0.25, atol=5 * np.sqrt(0.25 * 0.75 / DRAWS))


def test_wrong_pictures_follow_the_columns_and_wrong_captions_the_rows():
    rows_and_columns_differ = np.array([[0, 9e3, 0], [0, 0, 9e3], [9e3, 0, 0]], np.float32)
    ctx = FakeContext(rows_and_columns_differ, np.eye(3, dtype=bool))
    objective()(ctx, jax.random.key(0))
    image_ids, text_ids = (np.asarray(ids).reshape(3, 3).T for ids in ctx.pairs)
    np.testing.assert_array_equal(text_ids[2], [1, 2, 0])  # the best caption of each picture
    np.testing.assert_array_equal(image_ids[1], [2, 0, 1])  # the best picture of each caption


@pytest.mark.parametrize(
    ("hardness", "ramp", "progress", "expected"),
    [
        (1.0, (0.0, 0.0), 0.0, 1.0),
        (0.0, (0.0, 0.0), 1.0, 0.0),
        (0.5, (0.0, 0.0), 0.3, 0.5),
        (1.0, (0.2, 0.6), 0.1, 0.0),
        (1.0, (0.2, 0.6), 0.3, 0.25),
        (0.8, (0.2, 0.6), 0.5, 0.6),
        (0.8, (0.2, 0.6), 0.9, 0.8),
    ],
)
def test_negatives_follow_the_softmax_of_similarity_times_hardness_ramped_over_the_run(
    hardness, ramp, progress, expected
):
    module, same = objective(hardness=hardness, ramp=ramp), np.eye(5, dtype=bool)

    def draw(key):
        ctx = FakeContext(similarity(), same, progress)
        _, metrics = module(ctx, key)
        return ctx.pairs[1].reshape(5, 3)[:, 2], metrics["hardness"]

    captions, told = map(np.asarray, jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), DRAWS)))
    np.testing.assert_allclose(told, expected, rtol=1e-6)
    frequency = np.stack([np.mean(captions == column, axis=0) for column in range(5)], axis=1)
    wanted = numpy_losses.negative_probabilities(expected * similarity(), same)
    assert np.all(np.abs(frequency - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / DRAWS) + 1e-12)


POSITIVES = np.array([0.5, 3.0, -3.0, 0.2, 1.0], np.float32)  # rows of all kinds: some, all or none are less similar


@pytest.mark.parametrize(("hardness", "swapped"), [(1.0, False), (0.5, False), (1.0, True)])
def test_semi_hard_negatives_follow_the_softmax_of_what_is_less_similar_than_the_pair(hardness, swapped):
    values, same = similarity(), numpy_losses.same_pair(IDS)
    np.fill_diagonal(values, POSITIVES)
    module = objective(negatives="semi_hard", hardness=hardness)

    def draw(key):
        ctx = FakeContext(values, same)
        _, metrics = module(ctx, key)
        images, texts = (ids.reshape(5, 3) for ids in ctx.pairs)
        return (images[:, 1] if swapped else texts[:, 2]), metrics["semi_hard"]

    drawn, told = map(np.asarray, jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), DRAWS)))
    read = values.T if swapped else values
    # What is less similar is told by the similarity itself, what is drawn by its hardness.
    expected = numpy_losses.semi_hard_probabilities(hardness * read, same)
    less = [
        any(row[n] < row[k] for n in range(5) if not same[k, n]) for x in (values, values.T) for k, row in enumerate(x)
    ]
    assert 0 < np.mean(less) < 1 and not np.array_equal(expected, numpy_losses.negative_probabilities(read, same))
    np.testing.assert_allclose(told, np.mean(less), rtol=1e-6)
    frequency = np.stack([np.mean(drawn == column, axis=0) for column in range(5)], axis=1)
    assert np.all(np.abs(frequency - expected) <= 5 * np.sqrt(expected * (1 - expected) / DRAWS) + 1e-12)


def test_semi_hard_negatives_at_hardness_0_are_uniform_among_what_is_less_similar():
    excluded, less = matching.semi_hard_only(
        jnp.array([[2.0, 1.0, 0.0], [1.0, 0.0, 2.0], [0.0, 0.0, 0.0]]), np.eye(3) > 0
    )
    np.testing.assert_array_equal(excluded, [[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(less, [True, False, False])  # as similar is not less similar


def test_a_semi_hard_negative_never_shares_picture_or_caption_with_its_example():
    same = numpy_losses.same_pair(IDS)
    values = similarity() + 10 * np.eye(5, dtype=np.float32)  # of which all others are less similar
    module = objective(negatives="semi_hard")

    def draw(key):
        ctx = FakeContext(values, same)
        module(ctx, key)
        return ctx.pairs

    images, texts = (np.asarray(ids).reshape(200, 5, 3) for ids in jax.jit(jax.vmap(draw))(jax.random.split(KEY, 200)))
    assert not np.any(same[images[:, :, 1], np.arange(5)]) and not np.any(same[np.arange(5), texts[:, :, 2]])


class PartOfABatch(FakeContext):
    """Every second example; what is said of the batch is said of the whole."""

    @property
    def own_rows(self):
        return jnp.arange(1, len(self.same_pair_BB), 2)


@pytest.mark.parametrize("negatives", ["hard", "semi_hard"])
def test_a_microbatch_has_the_negatives_of_the_whole_batch(negatives):
    same, values, module = numpy_losses.same_pair(IDS), similarity(), objective(negatives=negatives)
    whole, part = (kind(values, same) for kind in (FakeContext, PartOfABatch))
    module(whole, KEY)
    module(part, KEY)
    for ours, theirs in zip(part.pairs, whole.pairs, strict=True):
        np.testing.assert_array_equal(ours.reshape(-1, 3), theirs.reshape(-1, 3)[1::2])


def test_random_negatives_read_no_similarity():
    ctx = FakeContext(similarity(), np.eye(5, dtype=bool))
    del ctx.similarity_BB
    _, metrics = objective(negatives="random")(ctx, jax.random.key(0))
    assert metrics["hardness"] == 0.0


def test_the_score_is_the_log_odds_of_the_two_classes():
    module, pairs = objective(), np.random.default_rng(3).normal(size=(6, toy.WIDTH)).astype(np.float32)
    kernel, bias = np.asarray(module.to_match.kernel[...]), np.asarray(module.to_match.bias[...])
    expected = [numpy_losses.matching_log_odds(pair, kernel, bias) for pair in pairs]
    np.testing.assert_allclose(module.log_odds(pairs), expected, rtol=1e-4, atol=1e-5)


def test_what_training_never_moves_moves_no_score():
    # The cross entropy gives the two logits opposite gradients: the sum of their weights keeps its first value.
    module, pairs = objective(), np.random.default_rng(3).normal(size=(6, toy.WIDTH)).astype(np.float32)
    scores = np.asarray(module.log_odds(pairs))
    graphdef, params = split_model(module)
    ctx = FakeContext(similarity(), np.eye(5, dtype=bool))
    grads = jax.grad(lambda p: mean_of(nnx.merge(graphdef, p)(ctx, KEY)[0]))(params)["to_match"]
    np.testing.assert_allclose(grads["kernel"].sum(axis=1), 0.0, atol=1e-5)
    np.testing.assert_allclose(grads["bias"].sum(), 0.0, atol=1e-5)
    untrained = np.random.default_rng(4).normal(size=(toy.WIDTH, 1)).astype(np.float32)
    module.to_match.kernel[...] = module.to_match.kernel[...] + 10 * untrained
    module.to_match.bias[...] = module.to_match.bias[...] + 7.0
    assert np.max(np.abs(np.asarray(module.classify(pairs)[:, 1]) - scores)) > 5  # one logit does move
    np.testing.assert_allclose(module.log_odds(pairs), scores, rtol=1e-3, atol=1e-4)


def test_a_new_head_says_nothing():
    vlm = SimpleNamespace(text_encoder=SimpleNamespace(width=toy.WIDTH), pair_width=toy.WIDTH)
    module = matching.Objective(vlm, shared=toy.shared(), rngs=nnx.Rngs(0))
    pairs = np.random.default_rng(3).normal(size=(6, toy.WIDTH))
    np.testing.assert_array_equal(module.log_odds(pairs), 0.0)
    terms, metrics = module(FakeContext(similarity(), np.eye(5, dtype=bool)), KEY)
    np.testing.assert_allclose(mean_of(terms), np.log(2), rtol=1e-6)
    assert (metrics["accuracy_matched"], metrics["accuracy_unmatched"]) == (0.0, 1.0)


def test_accuracies_by_class_are_shares_of_the_valid_pairs_of_a_class():
    same, module = numpy_losses.same_pair(IDS), objective()
    ctx = FakeContext(similarity(), same)
    _, metrics = module(ctx, KEY)
    scores = np.asarray(module.log_odds(ctx.table[ctx.pairs])).reshape(-1, 3)
    found = ~np.all(same, axis=1)
    np.testing.assert_allclose(metrics["accuracy_matched"], np.mean(scores[:, 0] > 0))
    np.testing.assert_allclose(metrics["accuracy_unmatched"], np.mean(scores[found, 1:] <= 0))


def test_no_gradient_flows_through_the_choice_of_negatives():
    module, same = objective(), np.eye(5, dtype=bool)
    grad = jax.grad(lambda s: mean_of(module(FakeContext(s, same), jax.random.key(0))[0]))(similarity())
    np.testing.assert_array_equal(grad, 0.0)


@pytest.mark.parametrize("ids", [IDS[:1], np.array([(0, 10), (0, 11)])], ids=["batch of one", "all the same"])
def test_without_a_negative_the_loss_is_that_of_the_pairs_themselves_and_its_gradient_is_finite(ids):
    graphdef, params = split_model(objective())

    def loss(params):
        ctx = FakeContext(similarity(len(ids)), numpy_losses.same_pair(ids))
        return mean_of(nnx.merge(graphdef, params)(ctx, jax.random.key(0))[0])

    value, grads = jax.value_and_grad(loss)(params)
    assert value > 0.0
    assert all(np.all(np.isfinite(grad)) and np.any(grad) for grad in jax.tree.leaves(grads))
