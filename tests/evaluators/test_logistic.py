"""The linear layer of a probe is at the minimum of its loss, and its regularisation is chosen as it is told."""

import numpy as np
import pytest

from maskvlm_jax.evaluators import logistic
from tests.conftest import ROOT
from tests.reference import numpy_logistic


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    feature_IF = (rng.normal(size=(150, 6)) * (1, 2, 0.5, 1, 1, 3) + 5).astype(np.float32)
    logits_IC = (feature_IF - 5) @ rng.normal(size=(6, 3)) + rng.normal(size=(150, 3))
    return feature_IF, logits_IC.argmax(axis=1)


@pytest.mark.parametrize("strength", [1e-6, 1e-2, 1.0, 100.0])
def test_it_ends_at_the_minimum_that_newton_s_method_finds(examples, strength):
    found = logistic.fit(*examples, 3, strength)
    weight_FC, bias_C = numpy_logistic.fit(*examples, 3, strength)
    np.testing.assert_allclose(found.weight_FC, weight_FC, atol=2e-3 * max(1, np.abs(weight_FC).max()))
    reached = numpy_logistic.loss(found.weight_FC, found.bias_C, *examples, strength)
    least = numpy_logistic.loss(weight_FC, bias_C, *examples, strength)
    assert least - 1e-12 <= reached <= least + 1e-4  # as close as gradients of float32 lead
    np.testing.assert_array_equal(
        found.logits(examples[0]).argmax(axis=1), (examples[0] @ weight_FC + bias_C).argmax(axis=1)
    )
    assert 1 <= found.steps < 100


@pytest.mark.parametrize("number", range(3))
def test_it_is_what_scikit_learn_makes_of_the_same_examples(number):
    golden = np.load(ROOT / "tests" / "reference" / "golden" / "logistic.npz")
    found = logistic.fit(golden["features"], golden["labels"], 3, golden["strengths"][number])
    np.testing.assert_allclose(found.weight_FC, golden[f"weight_{number}"], rtol=2e-3, atol=2e-3)
    # A constant that is added to all of b changes nothing.
    bias_C = golden[f"bias_{number}"]
    np.testing.assert_allclose(found.bias_C - found.bias_C.mean(), bias_C - bias_C.mean(), rtol=2e-3, atol=5e-3)


def test_the_same_examples_give_the_same_bits(examples):
    first, second = (logistic.fit(*examples, 3, 1.0) for _ in range(2))
    np.testing.assert_array_equal(first.weight_FC, second.weight_FC)
    np.testing.assert_array_equal(first.bias_C, second.bias_C)


def test_a_class_without_examples_is_not_told(examples):
    found = logistic.fit(*examples, 5, 1.0)
    assert found.logits(examples[0]).argmax(axis=1).max() == 2


def test_steps_have_a_limit(examples):
    assert logistic.fit(*examples, 3, 100.0, steps=2).steps == 2


@pytest.mark.parametrize("best", [-6.0, -1.375, 0.0, 2.5, 6.0])
def test_the_best_strength_is_found_to_an_eighth_of_a_decade(best):
    asked = []

    def accuracy(strength):
        asked.append(strength)
        return -abs(np.log10(strength) - best)

    assert np.log10(logistic.choose(accuracy)) == pytest.approx(best)
    assert len(asked) == len(set(asked)) <= 7 + 4 * 2


def test_of_equally_good_strengths_the_smallest_is_chosen():
    assert logistic.choose(lambda strength: 0.5) == 1e-6
    assert logistic.choose(lambda strength: float(strength >= 1)) == 1.0
