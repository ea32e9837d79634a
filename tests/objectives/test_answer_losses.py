"""Answers as classes and as texts: losses and rankings against slow ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.models.attention import First
from maskvlm_jax.models.decoder import log_likelihood
from maskvlm_jax.objectives import answer_classes, answer_text
from maskvlm_jax.objectives.base import AnswerTexts
from maskvlm_jax.runtime.errors import UserError
from tests.reference import toy

DECODER = {"width": toy.WIDTH, "heads": toy.HEADS, "mlp_ratio": 2, "dropout": 0.0, "norm": "post", "depth": 2}
SIZE, LENGTH = 4, 5


@pytest.fixture(scope="module")
def learner():
    return toy.learner()


@pytest.fixture(scope="module")
def texts(learner):
    return toy.randomised(
        lambda: answer_text.Objective(learner.vlm, decoder=DECODER, shared=toy.shared(), candidates=3, rngs=nnx.Rngs(0))
    )


def encoded(rng, count):
    """Answers of one word and more, from start token to end token."""
    length = 3 + rng.integers(0, LENGTH - 2, count)
    position = np.arange(LENGTH)
    tokens = rng.integers(toy.FIRST_WORD, toy.VOCAB, (count, LENGTH))
    tokens = np.where(position == 0, toy.START, np.where(position == length[:, None] - 1, toy.END, tokens))
    valid = position < length[:, None]
    return np.where(valid, tokens, toy.PAD).astype(np.int32), valid


def test_the_loss_of_classes_is_the_sum_of_binary_cross_entropies():
    rng = np.random.default_rng(0)
    logits, score = rng.normal(size=(3, 5)) * 4, rng.choice([0, 0.3, 0.6, 0.9, 1], (3, 5))
    expected = []
    for row in range(3):
        right = [1 / (1 + np.exp(-x)) for x in logits[row]]
        expected.append(-sum(y * np.log(p) + (1 - y) * np.log(1 - p) for p, y in zip(right, score[row], strict=True)))
    np.testing.assert_allclose(answer_classes.answer_loss(jnp.asarray(logits), jnp.asarray(score)), expected, rtol=1e-5)


def test_questions_of_which_no_answer_is_listed_do_not_count(learner):
    objective = toy.randomised(
        lambda: answer_classes.Objective(learner.vlm, shared=toy.shared(), count=6, rngs=nnx.Rngs(0))
    )
    score = np.zeros((SIZE, 6), np.float32)
    score[1, 2], score[2, 5] = 1.0, 0.3

    @jax.jit
    def computed(batch):
        ctx = learner.context(batch)
        terms, metrics = objective(ctx, jax.random.key(0))
        return terms.valid, metrics["score"], objective.logits(ctx), objective.answer_scores(ctx, None)

    counted, mean_score, logits, ranked = computed({**toy.batch(SIZE), "answers": score})
    np.testing.assert_array_equal(counted, [False, True, True, False])
    best = np.argmax(logits, axis=1)
    np.testing.assert_allclose(mean_score, (score[1, best[1]] + score[2, best[2]]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(ranked, logits)


def test_at_first_one_answer_is_thought_right(learner):
    objective = answer_classes.Objective(learner.vlm, shared=toy.shared(), count=50, rngs=nnx.Rngs(0))
    logits = jax.jit(lambda batch: objective.logits(learner.context(batch)))(toy.batch(SIZE))
    np.testing.assert_allclose(jax.nn.sigmoid(logits).sum(axis=1), np.full(SIZE, 50 / 51), rtol=1e-5)


def test_classes_need_their_number(learner):
    with pytest.raises(UserError, match=r"how many answers are there\? .* set --config\.data\.fields\.answers\.count"):
        answer_classes.Objective(learner.vlm, shared=toy.shared(), count=0, rngs=nnx.Rngs(0))


def memory_of(learner, objective):
    """What the decoder reads of a batch, compiled."""

    def read(batch):
        ctx = learner.context(batch)
        return objective.decoder.memory(ctx.fuse_text("clean"), First.of(ctx.batch["token_valid"]))

    return jax.jit(read)


@pytest.fixture(scope="module")
def last(learner, texts):
    """Logits of the token that follows."""
    return jax.jit(lambda tokens, memory: texts.decoder(learner.vlm.text_encoder, tokens, memory)[:, -1])


def slow_likelihood(last, memory, tokens, valid):
    """log p of an answer a row, one token after the other, each from those before it alone."""
    total = np.zeros(len(tokens))
    for place in range(1, tokens.shape[1]):
        logits = np.asarray(last(tokens[:, :place], memory), np.float64)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        total += np.where(valid[:, place], log_p[np.arange(len(tokens)), tokens[:, place]], 0.0)
    return total


def test_the_loss_of_texts_is_that_of_every_answer_by_its_share(learner, texts, last):
    rng, batch = np.random.default_rng(0), toy.batch(SIZE)
    tokens, valid = (x.reshape(SIZE, 2, LENGTH) for x in encoded(rng, 2 * SIZE))
    share = np.array([[0.7, 0.3], [1, 0], [0, 0], [0.5, 0.1]], np.float32)
    arrays = {"answer_text_tokens": tokens, "answer_text_valid": valid, "answer_text_share": share}
    loss = jax.jit(lambda batch: texts(learner.context(batch), jax.random.key(0))[0][:2])
    value, counted = loss({**batch, **arrays})
    memory = memory_of(learner, texts)(batch)
    found = [slow_likelihood(last, memory, tokens[:, g], valid[:, g]) for g in range(2)]
    np.testing.assert_allclose(value, -(share * np.stack(found, axis=1)).sum(axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(counted, [True, True, False, True])


def test_answers_are_ranked_by_their_first_token_and_then_as_a_whole(learner, texts, last):
    batch, count = toy.batch(SIZE), 8
    tokens, valid = encoded(np.random.default_rng(3), count)
    assert len(set(tokens[:, 1].tolist())) > 4
    rank = jax.jit(lambda batch, *listed: texts.answer_scores(learner.context(batch), AnswerTexts(*listed)))
    found, memory = np.asarray(rank(batch, tokens, valid)), memory_of(learner, texts)(batch)
    first, whole = np.zeros((SIZE, count)), np.zeros((SIZE, count))
    for number in range(count):
        rows, real = np.tile(tokens[number], (SIZE, 1)), np.tile(valid[number], (SIZE, 1))
        first[:, number] = slow_likelihood(last, memory, rows[:, :2], real[:, :2])
        whole[:, number] = slow_likelihood(last, memory, rows, real)
    chosen = np.isfinite(found)
    assert (chosen.sum(axis=1) == 3).all()
    worst, best_left = np.where(chosen, first, np.inf).min(axis=1), np.where(chosen, -np.inf, first).max(axis=1)
    assert (worst >= best_left - 1e-4).all()
    np.testing.assert_allclose(found[chosen], whole[chosen], rtol=1e-4, atol=1e-5)


def test_a_likelihood_does_not_see_what_follows_the_end(learner, texts):
    tokens, valid = encoded(np.random.default_rng(4), SIZE)
    memory = memory_of(learner, texts)(toy.batch(SIZE))
    told = jax.jit(lambda x: log_likelihood(texts.decoder(learner.vlm.text_encoder, x, memory), x, valid))
    other = np.where(valid, tokens, toy.VOCAB - 1).astype(np.int32)
    np.testing.assert_allclose(told(tokens), told(other), rtol=1e-6)
