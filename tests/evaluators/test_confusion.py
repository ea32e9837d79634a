"""The sheet of confusions counts every example once, and is drawn for few classes and for many."""

import numpy as np
import pytest

from maskvlm_jax.evaluators import confusion


def test_counts_are_of_right_classes_by_told_ones():
    label_I, told_I = np.array([0, 0, 2, 1, 2]), np.array([0, 1, 2, 1, 0])
    count_CC = confusion.counts(label_I, told_I, 4)
    assert count_CC.sum() == 5 and count_CC.tolist()[0] == [1, 1, 0, 0] and count_CC.tolist()[2] == [1, 0, 1, 0]


@pytest.mark.parametrize("classes", [1, 2, 40, 41, 300, 1_000])
def test_a_sheet_is_drawn(classes):
    rng = np.random.default_rng(0)
    label_I = np.arange(classes).repeat(3)
    told_I = np.where(rng.random(3 * classes) < 0.8, label_I, rng.integers(0, classes, 3 * classes))
    sheet = confusion.sheet(label_I, told_I, [f"class {number}" for number in range(classes)])
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3 and max(sheet.shape) < 2_000
    green = np.all(np.abs(sheet.astype(int) - (0, 120, 50)) < 3, axis=2).sum()
    assert green > 0  # what is right


def test_classes_without_a_name_have_their_number_and_too_many_are_not_drawn():
    assert confusion.sheet(np.array([0, 3]), np.array([3, 0]), ["one"]) is not None
    assert confusion.sheet(np.array([0, 1_000]), np.array([0, 0])) is None
