"""A caption without words keeps its ends; rebuilt patches land where they belong."""

import numpy as np

from maskvlm_jax.data.batch import without_words
from maskvlm_jax.evaluators.figures import paste
from tests.reference import numpy_losses

PAD, START, END = 0, 1, 2


def test_a_caption_without_words_is_its_start_and_end_token():
    tokens = np.array(
        [[START, 7, 8, END, PAD], [START, 7, END, PAD, PAD], [START, 7, 8, 9, END], [START, END, PAD, PAD, PAD]]
    )
    empty = without_words({"tokens": tokens, "token_valid": tokens != PAD})
    for ids, valid in zip(empty["tokens"], empty["token_valid"], strict=True):
        assert ids[valid].tolist() == [START, END]
        assert valid.tolist() == [True, True, False, False, False]


def test_removing_the_words_leaves_the_batch_as_it_was():
    tokens = np.array([[START, 7, 8, END, PAD]])
    batch = {"tokens": tokens.copy(), "token_valid": tokens != PAD}
    without_words(batch)
    np.testing.assert_array_equal(batch["tokens"], tokens)
    np.testing.assert_array_equal(batch["token_valid"], tokens != PAD)


def test_a_picture_is_its_patches_pasted_in_any_order():
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    patches = numpy_losses.patchify(image[None], 4)[0].reshape(9, 4, 4, 3)
    order = np.random.default_rng(1).permutation(9)
    np.testing.assert_array_equal(paste(np.zeros_like(image), patches[order], order), image)


def test_pasting_changes_the_named_patches_and_not_the_picture_itself():
    image = np.zeros((8, 8, 3), np.uint8)
    pasted = paste(image, np.full((2, 4, 4, 3), 9, np.uint8), np.array([1, 2]))
    expected = np.zeros_like(image)
    expected[:4, 4:] = expected[4:, :4] = 9
    np.testing.assert_array_equal(pasted, expected)
    assert not image.any()
