"""A caption without words keeps its ends; rebuilt patches land where they belong."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from maskvlm_jax.data.batch import without_words
from maskvlm_jax.evaluators import baselines, probes
from maskvlm_jax.evaluators.figures import paste
from maskvlm_jax.evaluators.predictor import Functions, Predictor
from maskvlm_jax.runtime import sharding
from maskvlm_jax.training.train_step import split_model
from tests.reference import numpy_losses, toy

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


def scores_of(correct, count) -> probes.Scores:
    return probes.Scores(0.0, np.array(correct), np.array(count), probes.percent)


def test_a_gain_is_the_difference_of_the_pooled_scores_and_lies_in_its_interval():
    rng = np.random.default_rng(0)
    pictures, count = np.repeat(np.arange(200), 3), rng.integers(1, 6, 600)
    right, wrong = rng.binomial(count, 0.6), rng.binomial(count, 0.5)
    found = dict(probes.gain("gain", scores_of(right, count), scores_of(wrong, count), pictures))
    np.testing.assert_allclose(found["gain"], 100 * (right.sum() - wrong.sum()) / count.sum())
    assert found["gain_low"] < found["gain"] < found["gain_high"]
    # Of independent tokens: 1.96 standard errors of a difference of two shares.
    half = 196 * np.sqrt((0.6 * 0.4 + 0.5 * 0.5) / count.sum())
    np.testing.assert_allclose((found["gain_high"] - found["gain_low"]) / 2, half, rtol=0.25)


def test_captions_of_one_picture_are_resampled_together():
    # Ten pictures, a hundred captions each that agree: as wide as with one caption each.
    correct = np.repeat([1, 0, 1, 1, 0, 0, 1, 0, 1, 0], 100)
    count, pictures = np.ones(1000, int), np.repeat(np.arange(10), 100)
    found = dict(probes.gain("gain", scores_of(correct, count), scores_of(0 * correct, count), pictures))
    assert found["gain_high"] - found["gain_low"] > 40


def test_equal_predictions_gain_nothing_for_sure():
    correct, count, pictures = np.array([1, 0, 2]), np.array([2, 1, 2]), np.arange(3)
    found = dict(probes.gain("gain", scores_of(correct, count), scores_of(correct, count), pictures))
    assert found == {"gain": 0.0, "gain_low": 0.0, "gain_high": 0.0}


def test_every_caption_of_the_pictures_is_read_and_no_other():
    data = SimpleNamespace(
        image_of_caption=np.array([0, 0, 1, 1, 2]),
        other_pictures=lambda: np.array([1, 2, 0]),
        first_captions=np.array([0, 2, 4]),
        one_at_a_time=True,
        batch=lambda seen, read, valid: {
            "seen": seen,
            "read": read,
            "valid": valid,
            "image_masked": np.ones((len(seen), 2), bool),
            "tokens": np.zeros((len(seen), 3)),
            "text_masked": np.ones((len(seen), 3), bool),
        },
    )
    expected = {
        ("text", "matched"): ([0, 0, 1, 1], [0, 1, 2, 3]),
        ("text", "shuffled"): ([1, 1, 2, 2], [0, 1, 2, 3]),
        ("image", "shuffled"): ([0, 0, 1, 1], [2, 2, 4, 4]),
    }
    for (of, reads), (seen, read) in expected.items():
        found = list(probes.batches(data, np.arange(4), 3, of=of, reads=reads))
        valid = np.concatenate([batch["valid"] for batch in found])
        assert np.concatenate([batch["seen"] for batch in found])[valid].tolist() == seen
        assert np.concatenate([batch["read"] for batch in found])[valid].tolist() == read
        # The side that is not rebuilt is read whole, however it was read in training.
        hidden = "image_masked" if of == "text" else "text_masked"
        assert not any(batch[hidden].any() for batch in found)


@pytest.mark.parametrize("reads", probes.OTHERS)
def test_masked_words_are_scored_alike_where_each_picture_is_encoded_once(reads, monkeypatch):
    graphdef, params = split_model(toy.learner())
    pictures, captions, owner = toy.batch(3), toy.batch(7, seed=1), np.array([0, 0, 0, 1, 2, 2, 2])
    text = {name: captions[name] for name in ("tokens", "tokens_masked", "token_valid", "text_masked")}
    data = SimpleNamespace(
        images=pictures["image"],
        image_of_caption=owner,
        other_pictures=lambda: np.array([1, 2, 0]),
        first_captions=np.array([0, 3, 4]),
        one_at_a_time=False,
        batch=lambda seen, read, valid: {
            **{name: pictures[name][seen] for name in ("image", "image_masked")},
            **{name: value[read] for name, value in text.items()},
            "example_valid": valid,
        },
    )
    mesh = sharding.make_mesh(data=1, fsdp=1, model=1, devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        predictor = Predictor(Functions(graphdef), params, objectives=toy.learner().objectives, mesh=mesh)
        alone = probes.masked_text_scores(predictor, probes.batches(data, np.arange(7), 2, of="text", reads=reads))
        encoded, encode = [], predictor.encode_image
        monkeypatch.setattr(predictor, "encode_image", lambda image: encoded.append(len(image)) or encode(image))
        found = probes.masked_text_scores(predictor, probes.encoded_once(predictor, data, np.arange(7), 2, reads))
    np.testing.assert_allclose(found.loss, alone.loss, rtol=1e-5)
    np.testing.assert_array_equal(found.sum_T, alone.sum_T)
    np.testing.assert_array_equal(found.count_T, alone.count_T)
    assert encoded == [2, 2]


def test_every_kind_of_prediction_is_probed_with_every_other_modality(monkeypatch):
    scores = scores_of([1, 0], [1, 1])
    monkeypatch.setattr(probes, "encoded_once", lambda predictor, data, texts, batch_size, reads: reads)
    monkeypatch.setattr(probes, "batches", lambda data, texts, batch_size, of, reads: (of, reads))
    monkeypatch.setattr(probes, "masked_text_scores", lambda predictor, source: scores)
    monkeypatch.setattr(probes, "masked_image_scores", lambda predictor, source: scores)
    monkeypatch.setattr(probes, "masked_feature_cosine", lambda predictor, source: f"cosine of {source}")
    monkeypatch.setattr(probes, "blend_psnr", lambda data, pictures: 0.0)
    data = SimpleNamespace(image_of_caption=np.array([0, 1]), images=np.zeros(2))
    everything = SimpleNamespace(offers=lambda role: True)
    found = dict(probes.evaluate(everything, data, batch_size=2, limit=0))
    expected = {name for names in probes.METRICS.values() for name in names} - {"masked_text_accuracy_neighbours"}
    assert found.keys() == expected
    assert found["masked_feature_cosine_empty"] == "cosine of ('image', 'empty')"


def test_the_blend_is_scored_once_for_every_caption(monkeypatch):
    rng = np.random.default_rng(0)
    images, masked = rng.integers(0, 256, (5, 6, 6, 3), dtype=np.uint8), np.zeros((5, 9), bool)
    for row in masked:
        row[rng.permutation(9)[:4]] = True
    pictures = np.array([0, 0, 1, 3, 3, 3, 4])
    monkeypatch.setattr(probes, "BLEND_BLOCK", 2)
    colours, targets = baselines.blended_patches(images[pictures], masked[pictures])
    expected = 10 * np.log10(255**2 / np.mean((np.rint(colours)[:, :, None] - targets) ** 2))
    found = probes.blend_psnr(SimpleNamespace(images=images, image_masked=masked), pictures)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
