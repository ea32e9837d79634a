"""Exact counts, whole cells, whole words, no special token; the picture's mask does not depend on the caption."""

import math
from collections import Counter

import numpy as np
import pytest

from maskvlm_jax.data import masking
from maskvlm_jax.data.examples import own_fields
from maskvlm_jax.data.fields import words
from maskvlm_jax.data.fields.base import Drawn, Fields, Sizes
from maskvlm_jax.data.tokenizer import Tokenizer, train_wordpiece
from maskvlm_jax.data.training_stream import MakeExample

OPTIONS = {
    "text_ratio": 0.3,
    "whole_word": False,
    "policy": "independent",
    "light_ratio": 0.15,
    "text_corruption": "mask",
    "image_cell": 2,
    "image_ratio": 0.6,
}
CAPTIONS = ["a red cross left of a blue ring", "two green squares", "a yellow star on a black background"]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    backend = train_wordpiece(CAPTIONS, 60)
    special = {"pad": "[PAD]", "start": "[CLS]", "end": "[SEP]", "mask": "[MASK]", "unknown": "[UNK]"}
    ids = {name: backend.token_to_id(token) for name, token in special.items()}
    return Tokenizer(backend, ids, ids.values())


# --- pictures --------------------------------------------------------------------------------------------------------


def test_the_papers_picture_has_30_of_49_cells_and_120_of_196_patches_hidden():
    assert masking.masked_cell_count(49, 0.6) == 30
    assert masking.masked_patch_count(14, cell=2, ratio=0.6) == 120
    for seed in range(20):
        assert masking.sample_image_mask(generator(seed), 14, cell=2, ratio=0.6).sum() == 120


def test_a_cell_is_hidden_whole_or_not_at_all():
    hidden = masking.sample_image_mask(generator(), 14, cell=2, ratio=0.6).reshape(7, 2, 7, 2)
    np.testing.assert_array_equal(hidden.all(axis=(1, 3)), hidden.any(axis=(1, 3)))


@pytest.mark.parametrize(("grid", "cell", "ratio"), [(6, 2, 0.6), (4, 1, 0.5), (6, 3, 0.25), (2, 2, 0.6)])
def test_the_number_of_hidden_patches_is_the_static_count(grid, cell, ratio):
    count = masking.masked_patch_count(grid, cell=cell, ratio=ratio)
    assert count == math.ceil(ratio * (grid // cell) ** 2) * cell**2
    assert masking.sample_image_mask(generator(), grid, cell=cell, ratio=ratio).sum() == count


def test_every_cell_is_hidden_equally_often():
    draws = np.stack([masking.sample_image_mask(generator(seed), 7, cell=1, ratio=0.6) for seed in range(4_000)])
    share = 30 / 49
    np.testing.assert_allclose(draws.mean(axis=0), share, atol=5 * np.sqrt(share * (1 - share) / 4_000))


# --- captions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", range(1, 29))
def test_three_tenths_of_the_tokens_are_hidden_rounded_up(tokens):
    word_ids = np.full(30, -1)
    word_ids[1 : tokens + 1] = np.arange(tokens)
    masked = masking.sample_text_mask(generator(tokens), word_ids, ratio=0.3)
    assert masked.sum() == math.ceil(0.3 * tokens) >= 1
    assert not np.any(masked & (word_ids < 0))


@pytest.mark.parametrize("whole_word", [False, True])
def test_a_caption_without_a_word_has_nothing_hidden(whole_word):
    word_ids = np.full(6, -1)
    assert not masking.sample_text_mask(generator(), word_ids, ratio=0.3, whole_word=whole_word).any()


def test_every_token_is_hidden_equally_often():
    word_ids = np.array([-1, *range(10), -1])
    draws = np.stack([masking.sample_text_mask(generator(seed), word_ids, ratio=0.3) for seed in range(4_000)])
    np.testing.assert_allclose(draws[:, 1:-1].mean(axis=0), 0.3, atol=5 * np.sqrt(0.21 / 4_000))


def test_whole_words_are_never_split_and_the_count_is_never_exceeded():
    word_ids = np.array([-1, 0, 1, 1, 2, 3, 3, 3, 4, 5, 5, 6, -1, -1])
    for seed in range(300):
        masked = masking.sample_text_mask(generator(seed), word_ids, ratio=0.3, whole_word=True)
        assert 1 <= masked.sum() <= math.ceil(0.3 * 11)
        assert not np.any(masked & (word_ids < 0))
        for word in range(7):
            assert masked[word_ids == word].all() or not masked[word_ids == word].any()


def test_where_no_word_fits_tokens_of_one_word_are_hidden():
    word_ids = np.array([-1, 0, 0, 0, 1, 1, 1, -1])
    for seed in range(50):
        masked = masking.sample_text_mask(generator(seed), word_ids, ratio=0.3, whole_word=True)
        assert masked.sum() == 2
        assert len(set(word_ids[masked])) == 1


def test_the_mask_token_stands_at_every_hidden_position_and_nowhere_else():
    tokens, masked = np.arange(10, 20), np.arange(10) % 3 == 1
    corrupted = masking.corrupt_tokens(
        generator(), tokens, masked, mask_id=4, ordinary_ids=np.arange(5, 30), corruption="mask"
    )
    np.testing.assert_array_equal(corrupted, np.where(masked, 4, tokens))
    assert corrupted.dtype == np.int32


def test_bert_corruption_is_eight_to_one_to_one_and_draws_ordinary_ids():
    count, ordinary = 50_000, np.arange(5, 1_000)
    tokens, masked = np.full(count, 7, np.int32), np.arange(count) % 2 == 0
    corrupted = masking.corrupt_tokens(generator(), tokens, masked, mask_id=4, ordinary_ids=ordinary, corruption="bert")
    np.testing.assert_array_equal(corrupted[~masked], 7)
    hidden = corrupted[masked]
    shares = [np.mean(hidden == 4), np.mean((hidden != 4) & (hidden != 7)), np.mean(hidden == 7)]
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.01)
    assert np.isin(hidden[hidden != 4], ordinary).all()


def test_a_caption_with_its_special_tokens_and_padding(tokenizer):
    for seed in range(30):
        drawn = Drawn({}, None, CAPTIONS[0], OPTIONS, None)
        fields = words.Field("words", Sizes(32, 8, 16), tokenizer).make(drawn, generator(seed))
        tokens, masked, valid = fields["tokens"], fields["text_masked"], fields["token_valid"]
        length = int(valid.sum())
        assert (tokens[0], tokens[length - 1]) == (tokenizer.start_id, tokenizer.end_id)
        assert not np.any(masked & ~valid) and not masked[0] and not masked[length - 1]
        assert masked.sum() == math.ceil(0.3 * (length - 2))
        np.testing.assert_array_equal(fields["tokens_masked"], np.where(masked, tokenizer.mask_id, tokens))


# --- both ------------------------------------------------------------------------------------------------------------


class OnePicture:
    """A source of one picture with one caption."""

    fingerprint = ""

    def __init__(self, caption: str):
        image = generator(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        self._example = {"id": "picture", "image": image, "captions": [caption]}

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict:
        return self._example


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("corruption", ["mask", "bert"])
def test_another_caption_changes_neither_the_picture_nor_its_mask(tokenizer, flip, corruption):
    augment = {"crop_scale": (0.5, 1.0), "flip": flip, "randaugment_ops": 1, "randaugment_magnitude": 5}
    options = OPTIONS | {"policy": "independent", "light_ratio": 0.15, "text_corruption": corruption}
    examples = []
    for caption in CAPTIONS[1:]:
        make = MakeExample(
            OnePicture(caption),
            Fields(own_fields(Sizes(image_size=16, patch=4, max_length=16), tokenizer)),
            image_size=16,
            augment=augment,
            masking_options=options,
        )
        examples.append([make.random_map(0, generator(seed)) for seed in range(5)])
    for one, other in zip(*examples, strict=True):
        assert np.any(one["tokens"] != other["tokens"])
        np.testing.assert_array_equal(one["image_masked"], other["image_masked"])
        np.testing.assert_array_equal(one["image"], other["image"])


def test_modality_aware_masks_are_heavy_image_heavy_text_or_light_equally_often():
    options = OPTIONS | {"policy": "modality_aware", "image_ratio": 0.8, "text_ratio": 0.8, "light_ratio": 0.15}
    draws = [masking.sample_ratios(np.random.default_rng(seed), options) for seed in range(3_000)]
    counts = Counter((drawn["image_ratio"], drawn["text_ratio"]) for drawn in draws)
    assert counts.keys() == {(0.8, 0.0), (0.0, 0.8), (0.15, 0.15)}
    np.testing.assert_allclose([count / 3_000 for count in counts.values()], 1 / 3, atol=5 * np.sqrt(2 / 9 / 3_000))


def test_a_ratio_of_nothing_hides_nothing():
    rng = np.random.default_rng(0)
    assert not masking.sample_image_mask(rng, 6, cell=2, ratio=0.0).any()
    assert not masking.sample_text_mask(rng, np.array([-1, 0, 1, 2, -1]), ratio=0.0).any()
