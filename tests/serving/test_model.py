"""The Python API gives what the model's own functions give, of whatever form pictures and texts are."""

import io
import json
import warnings

import jax
import numpy as np
import pytest
import tokenizers
from PIL import Image

import maskvlm_jax
from maskvlm_jax.data.scenes.source import Scenes
from maskvlm_jax.data.tokenizer import Tokenizer
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.serving.pictures import PictureError
from maskvlm_jax.serving.runner import Runner
from tests.conftest import toy_config
from tests.reference import exporting as exports
from tests.training.tasks.scored import without_contrast

TEXTS = ["a red", "ride", "the end"]


@pytest.fixture(scope="module")
def model():
    """Of a folder that PyTorch has computed from."""
    return maskvlm_jax.load(exports.FOLDER / "albef", batch_size=8)


@pytest.fixture(scope="module")
def golden():
    return np.load(exports.FOLDER / "albef" / "golden.npz")


@pytest.fixture(scope="module")
def scenes():
    source = Scenes(split="test", image_size=32)
    return [source[i]["image"] for i in range(11)]


def test_pictures_are_what_pytorch_makes_of_them(model, golden):
    np.testing.assert_allclose(model.encode_images(golden["pixels"]), golden["image_embedding"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(model.encode_images(golden["pixels"][1]), golden["image_embedding"][1], atol=1e-5)
    assert model.encode_images([]).shape == (0, model.embed_dim) and model.encode_texts([]).shape == (0, 16)
    assert (model.image_size, model.max_length, model.embed_dim, model.step) == (32, 12, 16, 3)
    assert len(jax.devices()) == 8  # over which a batch is split


def test_every_form_of_a_picture_is_the_same_picture(model, scenes, tmp_path):
    pixels = scenes[0]
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 270 degrees to the left, as cameras write
    turned.save(tmp_path / "turned.png", exif=exif)
    whole = np.concatenate([pixels, np.full((32, 32, 1), 255, np.uint8)], axis=2)
    forms = [pixels, tmp_path / "a.png", str(tmp_path / "a.png"), encoded.getvalue(), picture, whole]
    forms += [picture.convert("RGBA"), Image.open(tmp_path / "turned.png")]
    rows = model.encode_images(forms)
    np.testing.assert_allclose(rows, np.repeat(rows[:1], len(forms), axis=0), atol=1e-6)
    grey = model.encode_images([picture.convert("L"), np.asarray(picture.convert("L"))])
    np.testing.assert_allclose(grey[0], grey[1], atol=1e-6)
    assert model.encode_images([picture.convert("CMYK")]).shape == (1, 16)


def test_order_and_batches_change_nothing(model, scenes):
    rows = model.encode_images(scenes, progress=True)
    assert rows.dtype == np.float32 and rows.shape == (11, 16)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    for i in (0, 7, 8, 10):
        np.testing.assert_allclose(model.encode_images(scenes[i]), rows[i], atol=1e-5)
    plain = model.encode_images(iter(scenes), normalize=False)
    np.testing.assert_allclose(plain / np.linalg.norm(plain, axis=1, keepdims=True), rows, atol=1e-5)
    texts = model.encode_texts(TEXTS * 4)
    np.testing.assert_allclose(texts[4], model.encode_texts(TEXTS[1]), atol=1e-5)
    np.testing.assert_allclose(model.similarity(rows, 3 * texts[:3]), rows @ texts[:3].T, atol=1e-5)


def test_a_broken_picture_is_named_or_left_out(model, scenes, tmp_path):
    Image.fromarray(scenes[0]).save(tmp_path / "lazy.png")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    given = [scenes[0], tmp_path / "broken.jpg", scenes[1], tmp_path / "missing.jpg"]
    with pytest.raises(PictureError, match=r"broken\.jpg: the picture cannot be decoded"):
        model.encode_images(given)
    with pytest.warns(UserWarning, match=r"left out, its row is NaN: .*(broken|missing)\.jpg"):
        rows = model.encode_images(given, on_error="skip")
    assert np.isnan(rows[[1, 3]]).all() and np.isfinite(rows[[0, 2]]).all()
    with Image.open(tmp_path / "lazy.png") as lazy:  # read when it is first looked at, here by several threads
        rows = model.encode_images([lazy] * 4)
        np.testing.assert_allclose(rows, np.repeat(model.encode_images(scenes[:1]), 4, axis=0), atol=1e-6)
    for wrong in ("a\0b.jpg", "~nobody-of-that-name/x.jpg"):
        with pytest.warns(UserWarning, match="left out"):
            assert np.isnan(model.encode_images([wrong], on_error="skip")).all()
    for wrong in (7, None, [3.0], np.zeros((4, 4, 7), np.uint8), np.zeros((4, 4, 3))):
        with pytest.raises((PictureError, TypeError)):
            model.encode_images([wrong])
    with pytest.raises(ValueError, match="on_error is 'none'"):
        model.encode_images(scenes, on_error="none")
    with pytest.raises(TypeError, match="PosixPath is no text; a path is a picture"):
        model.encode_texts([tmp_path])


def test_a_text_that_is_cut_is_told_once(model):
    with pytest.warns(UserWarning, match="2 of 3 texts have more than 12 tokens and are cut") as told:
        rows = model.encode_texts(["a " * 30, "a", "a " * 40])
    assert len(told) == 1
    np.testing.assert_allclose(rows[0], rows[2], atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode_texts(["a " * 10, ""])


def test_matching_is_that_of_the_head_corrected_for_its_prior(model, scenes):
    pairs = model.match(scenes[:3], TEXTS)
    assert pairs.shape == (3,) and ((pairs > 0) & (pairs < 1)).all()
    one = model.match(scenes[1], TEXTS)
    assert one[1] == pytest.approx(pairs[1], rel=1e-5) and model.match(scenes, TEXTS[0])[0] == pytest.approx(pairs[0])
    assert np.ndim(model.match(scenes[0], TEXTS[0])) == 0
    with pytest.raises(ValueError, match="there are 11 images and 3 texts"):
        model.match(scenes, TEXTS)


def test_ranks_are_those_of_both_stages(model, scenes):
    cosine = model.encode_images(scenes) @ model.encode_texts(TEXTS[0])
    first = model.rank(TEXTS[0], scenes, k=20, rerank=0)
    assert [one["index"] for one in first] == np.argsort(-cosine).tolist() and first[0]["match"] is None
    both = model.rank(TEXTS[0], scenes, k=4, rerank=6)
    match = model.match(scenes, TEXTS[0])
    top = np.argsort(-cosine)[:6]
    odds = np.log(match / (1 - match)) + cosine / model.temperature
    expected = top[np.argsort(-odds[top])][:4]
    assert [one["index"] for one in both] == expected.tolist()
    for one in both:
        assert one["match"] == pytest.approx(match[one["index"]], rel=1e-4)
        assert one["score"] == pytest.approx(cosine[one["index"]], abs=1e-5)
    texts = model.rank(scenes[0], iter(TEXTS), k=2, rerank=0)
    nearest = np.argsort(-(model.encode_texts(TEXTS) @ model.encode_images(scenes[0])))
    assert [one["index"] for one in texts] == nearest[:2].tolist() and model.rank("a", [], k=3) == []
    for wrong, options in ((scenes[0], {}), (scenes, {"k": 0}), (scenes, {"rerank": -1})):
        with pytest.raises(ValueError, match="give"):
            model.rank(TEXTS[0], wrong, **options)


def test_classes_by_their_names(model, scenes):
    found = model.classify(scenes, ["red", "blue"], templates=("a {}", "{}"))
    assert found.shape == (11, 2)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    names = [model.encode_texts([f"a {name}", f"{name}"]).mean(0) for name in ("red", "blue")]
    names = np.stack([name / np.linalg.norm(name) for name in names])
    logits = model.encode_images(scenes) @ names.T / model.temperature
    np.testing.assert_allclose(found, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=1e-3)
    assert model.classify(scenes[0], ["red", "blue"]).shape == (2,)
    with pytest.raises(ValueError, match=r"labels is .*; give a list"):
        model.classify(scenes, [])
    with pytest.raises(ValueError, match="labels is 'red'; give a list"):
        model.classify(scenes, "red")
    with pytest.raises(ValueError, match=r"must have \{\} once"):
        model.classify(scenes, ["red"], templates=["a photo"])


def test_classes_by_their_names_without_a_contrastive_space(scenes, tmp_path):
    exports.make_workdir(tmp_path, without_contrast(toy_config()))
    model, labels, templates = maskvlm_jax.load(tmp_path, batch_size=8), ["red", "blue", "ring"], ("a {}", "{} here")
    found = model.classify(scenes[:3], labels, templates=templates)
    matched = [[model.match(scene, [one.format(name) for one in templates]) for name in labels] for scene in scenes[:3]]
    odds = np.array(matched, float)
    # `match` corrects log-odds by a constant, which no share of classes sees.
    odds = np.exp(np.mean(np.log(odds) - np.log1p(-odds), axis=2))
    np.testing.assert_allclose(found, odds / odds.sum(axis=1, keepdims=True), rtol=1e-4)
    np.testing.assert_allclose(model.classify(scenes[1], labels, templates=templates), found[1], rtol=1e-5)


def test_features_are_those_of_the_encoders(model, golden):
    found = model.features(golden["pixels"], TEXTS)
    assert found["image"].shape == (3, 3 + 16, 16) and found["text"].shape == (3, 12, 16)
    assert found["text_valid"].sum(1).tolist() == [int(model._runner.tokens([t])["token_valid"].sum()) for t in TEXTS]
    one, many = model.features(texts=TEXTS[1]), model.features(texts=iter(TEXTS))
    assert one["text"].shape == (12, 16) and one["text_valid"].shape == (12,)
    for name in ("text", "text_valid"):
        np.testing.assert_allclose(many[name], found[name], atol=1e-6)
        np.testing.assert_allclose(one[name], found[name][1], atol=1e-5)


def test_words_and_pictures_are_filled_in(scenes):
    model = maskvlm_jax.load(exports.FOLDER / "maskvlm", batch_size=8)
    places = model.fill_masks(scenes[0], "a [MASK] square", k=3)
    assert len(places) == 1 and len(places[0]) == 3
    assert places[0][0]["probability"] >= places[0][1]["probability"] > 0
    whole = model.fill_masks(None, "a [MASK] square [MASK]", k=64)
    assert len(whole) == 2 and sum(one["probability"] for one in whole[0]) == pytest.approx(1, rel=1e-4)
    for text in ("no mask", "[MASK] " * 9):
        with pytest.raises(ValueError, match="this model fills 1 to"):
            model.fill_masks(scenes[0], text)
    rebuilt = model.reconstruct(scenes[0], "a red square", seed=1)
    hidden = np.kron(rebuilt["hidden"].reshape(4, 4), np.ones((8, 8), bool))
    assert rebuilt["image"].shape == (32, 32, 3) and hidden.any() and not hidden.all()
    np.testing.assert_array_equal(rebuilt["image"][~hidden], scenes[0][~hidden])
    assert (rebuilt["masked"][hidden] == 128).all()
    again = model.reconstruct(scenes[0], "a red square", seed=1)
    np.testing.assert_array_equal(rebuilt["image"], again["image"])


def test_what_a_model_cannot_do_is_told(scenes):
    model = maskvlm_jax.load(exports.FOLDER / "mlim", batch_size=8)
    with pytest.raises(ValueError, match="mlim-tiny-scenes has no contrastive space"):
        model.encode_images(scenes)
    with pytest.raises(ValueError, match="has no matching head"):
        model.match(scenes[0], "a")
    with pytest.raises(UserError, match="there is no workdir 'nowhere'"):
        maskvlm_jax.load("nowhere")
    for options in ({"dtype": "int8"}, {"weights": "foo"}, {"step": 7}):
        with pytest.raises(UserError):
            maskvlm_jax.load(exports.FOLDER / "mlim", **options)


def test_a_model_that_leaves_a_share_out_fills_nothing_in(scenes, tmp_path):
    (tmp_path / "run").mkdir()
    exports.make_workdir(tmp_path / "run", toy_config("recipe=m3ae"))
    model = maskvlm_jax.load(tmp_path / "run", batch_size=8)
    for call in (lambda: model.fill_masks(scenes[0], "a [MASK]"), lambda: model.reconstruct(scenes[0], "a")):
        with pytest.raises(ValueError, match="leaves a fixed share of pictures and texts out"):
            call()


def test_a_space_before_a_mask_is_no_token_of_its_own():
    """Of RoBERTa's kind of tokenizer, where a space belongs to the word behind it."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        special_tokens=["<pad>", "<s>", "</s>", "<mask>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["a red square"] * 9, trainer)
    tokenizer = Tokenizer(backend, {"pad": 0, "start": 1, "end": 2, "mask": 3}, [0, 1, 2, 3])
    runner = Runner.__new__(Runner)
    runner.tokenizer, runner._max_length = tokenizer, 12
    tokens, hidden, valid = runner.masked_tokens("a [MASK] square", 3)
    assert [tokenizer.token(i) for i in tokens[valid]] == ["<s>", "a", "<mask>", "Ġsquare", "</s>"]
    assert hidden.sum() == 1
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        maskvlm_jax.lode  # noqa: B018


def test_a_model_is_saved_as_an_export(model, tmp_path):
    model.save(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        exports.FOLDER / "albef" / "model.safetensors"
    ).read_bytes()


def test_recalls_through_the_api_are_those_of_the_evaluation(finished_run):
    """The first stage by vectors, the second by matching, as a user would compute them."""
    workdir = finished_run[0]
    result = json.loads((workdir / "result.json").read_text())
    metrics, model = result["metrics"], maskvlm_jax.load(workdir)
    count, k = 12, 4  # of the toy run: evaluation.limit and evaluation.rerank_k
    source = Scenes(split="test", image_size=32)
    pictures, texts = zip(*[(source[i]["image"], source[i]["captions"][0]) for i in range(count)], strict=True)
    cosines = model.similarity(model.encode_images(pictures), model.encode_texts(texts))

    def recalls(of_image, of_text, prefix=""):
        """Ranks of the own caption of each picture, and of the own picture of each caption; equals count before it."""
        ranks = {"i2t": [(row >= row[i]).sum() - 1 for i, row in enumerate(of_image)]}
        ranks["t2i"] = [(row >= row[i]).sum() - 1 for i, row in enumerate(of_text)]
        return {
            f"{prefix}{way}_r{n}": 100 * np.mean(np.array(rows) < n) for way, rows in ranks.items() for n in (1, 5, 10)
        }

    first = recalls(cosines, cosines.T)
    assert first == {name: metrics[name] for name in first}
    pairs = [(i, j) for i in range(count) for j in range(count)]
    match = model.match([pictures[i] for i, _ in pairs], [texts[j] for _, j in pairs]).reshape(count, count)
    odds = np.log(match) - np.log1p(-match)
    formula = result["protocol"]["rerank_score"]
    score = odds + {"itm": 0, "itm+cosine": cosines, "itm+itc": cosines / model.temperature}[formula]

    def second(score, cosine):
        """Above all others the k nearest, in the order of the score."""
        rows = []
        for own, near in zip(score, cosine, strict=True):
            top = np.argsort(-near, kind="stable")[:k]
            row = near - 1000
            row[top] = own[top]
            rows.append(row)
        return rows

    again = recalls(second(score, cosines), second(score.T, cosines.T), "rerank_")
    assert again == {name: metrics[name] for name in again}
