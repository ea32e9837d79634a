"""What the contrastive space reads of a sequence, against means that are taken one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.models.pooling import AttentionPool, Projection, pool
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import rules
from maskvlm_jax.training.build import model_arguments
from tests.conftest import toy_config
from tests.models.test_joint import SIZES, batch_for
from tests.reference import toy
from tests.training.steps import mesh_of, one_device, share_apart, train

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 6, 4)).astype(np.float32)
VALID = np.arange(6) < np.array([6, 3, 4])[:, None]


def test_the_mean_is_of_valid_positions_alone():
    expected = np.stack([x[valid].mean(axis=0) for x, valid in zip(X, VALID, strict=True)])
    np.testing.assert_allclose(pool(X, "mean", valid_BS=VALID), expected, rtol=1e-5)
    np.testing.assert_allclose(pool(X, "mean", before=2), X[:, 2:].mean(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(pool(X, "first"), X[:, 0])
    np.testing.assert_allclose(
        pool(X, "both", before=1), np.concatenate([X[:, 0], X[:, 1:].mean(axis=1)], 1), rtol=1e-5
    )
    assert pool(jnp.asarray(X, jnp.bfloat16), "both").dtype == jnp.float32


def test_attention_pools_what_each_query_attends_to():
    """Against the attention that it is short for: keys and values of every position, one query a head."""
    rng, heads, width = np.random.default_rng(1), 2, 4
    pooling = AttentionPool(width, heads, init_std=0.0, rngs=nnx.Rngs(0))
    query_HK, key_HDK = rng.normal(size=(heads, 3)), rng.normal(size=(heads, width, 3))
    value_DD, bias_D = rng.normal(size=(width, width)), rng.normal(size=width)
    pooling.query[...] = jnp.asarray(np.einsum("hdk,hk->hd", key_HDK, query_HK), jnp.float32)
    pooling.value.kernel[...], pooling.value.bias[...] = jnp.asarray(value_DD), jnp.asarray(bias_D)
    expected = []
    for x, valid in zip(X, VALID, strict=True):
        parts = []
        for head in range(heads):
            logits = (x[valid] @ key_HDK[head]) @ query_HK[head]
            weights = np.exp(logits - logits.max())
            values = x[valid] @ value_DD[:, 2 * head : 2 * head + 2]
            parts.append((weights / weights.sum()) @ values)
        expected.append(np.concatenate(parts) + bias_D)
    np.testing.assert_allclose(pool(X, "attention", pooling, valid_BS=VALID), expected, rtol=1e-4, atol=1e-5)
    beside = pool(X, "first+attention", pooling, valid_BS=VALID)
    np.testing.assert_allclose(beside, np.concatenate([X[:, 0], expected], axis=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(
    ("image", "text", "centred"), [("both", "mean", True), ("mean", "both", False), ("first", "first", False)]
)
def test_embeddings_are_projections_of_what_is_pooled(image, text, centred, layers):
    chosen = {"image": image, "text": text, "layers": layers, "centred": centred}
    pooling = {f"model__pooling__{name}": value for name, value in chosen.items()}
    config = toy_config(**SIZES, **pooling, model__image__registers=2)
    rules.check(config)
    learner = toy.randomised(lambda: Learner(**model_arguments(config), rngs=nnx.Rngs(0)))
    batch = batch_for(learner)
    ctx = learner.context(batch)
    sequences = {"image": np.asarray(ctx.image("clean")), "text": np.asarray(ctx.text("clean"))}
    for modality, found in (("image", ctx.image_embedding_BE), ("text", ctx.text_embedding_BE)):
        kind, rows = pooling[f"model__pooling__{modality}"], []
        centre = getattr(learner.vlm, f"{modality}_centre")
        assert (centre is not None) == centred
        for i, row in enumerate(sequences[modality]):
            if centred:
                assert np.any(centre[...])
                row = np.concatenate([row[:1] - centre[0], row[1:] - centre[1]])
            rest = row[3:] if modality == "image" else row[batch["token_valid"][i]]
            rows.append({"first": row[0], "mean": rest.mean(0), "both": np.concatenate([row[0], rest.mean(0)])}[kind])
        head = getattr(learner.vlm, f"{modality}_projection")
        rows = np.asarray(head(jnp.asarray(np.stack(rows))))
        np.testing.assert_allclose(found, rows / np.linalg.norm(rows, axis=1, keepdims=True), rtol=2e-4, atol=1e-5)


def test_hidden_units_are_dropped_in_training_alone():
    """Of two units of each kind: what is left is scaled up, and without a key nothing is dropped."""
    head = Projection(64, 8, rate=0.25, init_std=0.0, exact=True, rngs=nnx.Rngs(0))
    x = RNG.normal(size=(512, 64)).astype(np.float32)
    hidden = np.asarray(jax.nn.gelu(head.hidden(x), approximate=False))
    whole = hidden @ np.asarray(head.last.kernel[...]) + np.asarray(head.last.bias[...])
    np.testing.assert_allclose(head(x), whole, atol=1e-5)
    keep = np.asarray(jax.random.bernoulli(jax.random.key(1), 0.75, hidden.shape))
    assert 0.74 < keep.mean() < 0.76
    expected = (hidden * keep / 0.75) @ np.asarray(head.last.kernel[...]) + np.asarray(head.last.bias[...])
    np.testing.assert_allclose(head(x, jax.random.key(1)), expected, atol=1e-5)


def test_a_step_draws_dropout_of_the_heads_and_an_evaluation_does_not():
    config = toy_config("recipe=clip", **SIZES, model__pooling__layers=2, model__pooling__dropout=0.5)
    learner = toy.randomised(lambda: Learner(**model_arguments(config), rngs=nnx.Rngs(0)))
    batch = batch_for(learner)
    plain, one, same, other = (
        learner.context(batch, key=key and jax.random.key(key)).similarity_BB for key in (None, 1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3 and np.abs(one - plain).max() > 1e-3
    np.testing.assert_array_equal(plain, learner.context(batch).similarity_BB)


@pytest.mark.slow
def test_it_trains_alike_on_one_device_and_on_several():
    values = {"model__pooling__image": "first+attention", "model__pooling__text": "mean", "model__pooling__layers": 2}
    config = toy_config("recipe=clip", **values)
    (one, lines), (several, other) = (train(config, mesh, 3) for mesh in (one_device(), mesh_of(2, 2, 2)))
    assert share_apart(one.params, several.params) < 0.02
    np.testing.assert_allclose([line["loss"] for line in lines], [line["loss"] for line in other], rtol=1e-4)


def test_values_that_are_not_there_are_refused():
    with pytest.raises(UserError, match=r"model\.pooling\.text is 'max'; choose among first, mean, both, att"):
        rules.check(toy_config(model__pooling__text="max"))
    with pytest.raises(UserError, match=r"model\.pooling\.dropout is of the units between two layers; set"):
        rules.check(toy_config(model__pooling__dropout=0.5))
    with pytest.raises(UserError, match=r"model\.pooling\.layers is 3; give 1 to 2"):
        rules.check(toy_config(model__pooling__layers=3))
