"""What `survey` says of one example, and of many: exact numbers on pictures made by code."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from maskvlm_jax.data import decoding
from maskvlm_jax.data.sources.files import Files
from maskvlm_jax.prepare import survey


def picture(seed: int, height: int = 96, width: int = 128) -> np.ndarray:
    """Smooth random colours: no two are alike, and all keep their look when they are resized."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(pixels: np.ndarray, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def example(image, captions=("a caption",)) -> dict:
    return {"id": "x", "image": image, "captions": list(captions)}


def bits_apart(a: np.ndarray, b: np.ndarray) -> int:
    return (survey.phash(a) ^ survey.phash(b)).bit_count()


def test_facts_of_a_sound_example():
    jpeg = encoded(picture(0, 700, 900))
    facts = survey.examine(example(jpeg, ["one", " ", "two words"]), min_size=700)
    assert (facts.id, facts.width, facts.height, facts.reason) == ("x", 900, 700, "")
    assert facts.captions == ["one", "two words"]
    assert facts.sha256 == survey.image_sha256(jpeg)


def test_the_size_is_that_of_the_upright_picture():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    facts = survey.examine(example(encoded(picture(0, 300, 400), exif=exif)))
    assert (facts.width, facts.height) == (300, 400)


@pytest.mark.parametrize(
    ("image", "captions", "reason", "detail"),
    [
        (b"", ["a"], "unreadable", "empty or cannot be read"),
        (b"no picture at all", ["a"], "not a picture", "cannot identify image file"),
        (encoded(picture(0, 900, 1200))[:-20_000], ["a"], "not a picture", "truncated"),
        (encoded(picture(0), "PNG")[:-500], ["a"], "not a picture", "truncated"),
        (encoded(picture(0, 31, 200)), ["a"], "too small", "200 x 31 pixels"),
        (picture(0, 31, 200), ["a"], "too small", "200 x 31 pixels"),
        (encoded(picture(0)), [], "no caption", ""),
        (encoded(picture(0)), ["", " \t"], "no caption", ""),
    ],
)
def test_every_reason(image, captions, reason, detail):
    facts = survey.examine(example(image, captions), min_size=32)
    assert facts.reason == reason
    assert detail in facts.detail and "0x" not in facts.detail, "no address that differs from run to run"


def test_a_picture_over_the_limit(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 1_000)
    assert survey.examine(example(encoded(picture(0)))).reason == "too large"


def test_copies_hash_alike_and_other_pictures_do_not():
    for seed in range(20):
        pixels = picture(seed, 300, 400)
        recoded = decoding.decode(encoded(cv2.resize(pixels, (200, 150), interpolation=cv2.INTER_AREA), quality=50))
        assert bits_apart(pixels, recoded) <= 6
        assert bits_apart(pixels, np.clip(pixels * 0.85 + 10, 0, 255).astype(np.uint8)) <= 6
        assert all(bits_apart(pixels, picture(other)) > 10 for other in range(seed))


def test_the_hash_does_not_depend_on_the_scale_a_jpeg_is_decoded_at():
    pixels = picture(3, 768, 1024)
    assert (survey.examine(example(encoded(pixels))).phash ^ survey.phash(pixels)).bit_count() <= 2


def test_nearest_is_what_comparing_all_pairs_gives(monkeypatch):
    rng = np.random.default_rng(0)
    hashes, others = (rng.integers(0, 2**64, n, np.uint64) for n in (101, 37))
    apart = np.array([[int(a ^ b).bit_count() for b in others] for a in hashes])
    for block in (1, 37 * 10, 1 << 22):
        monkeypatch.setattr(survey, "_BLOCK", block)
        bits, number = survey.nearest(hashes, others)
        np.testing.assert_array_equal(bits, apart.min(axis=1))
        np.testing.assert_array_equal(number, apart.argmin(axis=1))


def test_first_of_equal():
    digests = np.array([[1, 0], [2, 0], [1, 0], [2, 1], [1, 0]], np.uint8).repeat(16, axis=1)
    assert survey.first_of_equal(digests).tolist() == [0, 1, 0, 3, 0]


def test_facts_survive_a_file_and_become_columns(tmp_path):
    facts = [
        survey.examine(example(encoded(picture(0)), ["one", "two words"])),
        survey.examine(example(b"", ["three words here"])),
        survey.examine(example(picture(1, 20, 30), [])),
    ]
    (tmp_path / "a").write_bytes(survey.pack(facts[:2]))
    (tmp_path / "b").write_bytes(survey.pack(facts[2:]))
    assert survey.load(tmp_path / "a") + survey.load(tmp_path / "b") == facts
    table = survey.Table.read([tmp_path / "a", tmp_path / "b"])
    assert table.reason == ["", "unreadable", "no caption"]
    assert table.detail == {1: facts[1].detail}
    assert table.sha256.tobytes() == b"".join(one.sha256 for one in facts)
    assert table.phash.tolist() == [one.phash for one in facts]
    assert table.short_side.tolist() == [96, 0, 20]
    assert table.captions.tolist() == [2, 1, 0]
    assert table.words.tolist() == [1, 2, 3]


def test_a_histogram_and_its_text():
    found = survey.spread(np.array([1, 2, 3, 10, 10, 200]), (1, 4, 7, 10, 13, 101))
    assert found["histogram"] == {"1-3": 3, "4-6": 0, "7-9": 0, "10-12": 2, "13-100": 0, "101-": 1}
    assert found["quantiles"] == {"5 %": 1, "25 %": 2, "50 %": 3, "75 %": 10, "95 %": 200}
    lines = survey.bars("words", found)
    assert lines[0] == "words: 5, 25, 50, 75, 95 % have at most 1, 2, 3, 10, 200"
    assert lines[1].split() == ["1-3", "#" * 40, "3", "50.0", "%"]
    assert survey.bars("words", survey.spread(np.array([], np.int64), (1, 4))) == ["words: none"]


def test_what_a_source_left_out_counts_pictures_alone(tmp_path):
    (tmp_path / "captions.csv").write_text("image,caption\na.jpg,x\na.jpg,\nb.jpg,\nc.jpg,y\nd.jpg,z\n")
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(b"")
    source = Files(root=str(tmp_path), images="", captions="captions.csv", split="train", splits=None, max_missing=0.5)
    assert source.report == {"missing_pictures": 1, "empty_captions": 2, "pictures_without_captions": 1}
    assert len(source) + survey.left_out(source.report) == 4
    assert survey.left_out({"coco: repeated_pictures": 3, "vg: missing_pictures": 2}) == 2
