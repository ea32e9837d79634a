"""Host transforms against Pillow, plain NumPy and geometry."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from maskvlm_jax.data import decoding
from maskvlm_jax.data import transforms as tf
from maskvlm_jax.models.vision import normalised
from maskvlm_jax.runtime.pixels import IMAGENET_MEAN, IMAGENET_STD

SIDES = (60, 90)  # height, width


def smooth_picture(height: int = SIDES[0], width: int = SIDES[1]) -> np.ndarray:
    """Gradients in three directions: smooth, so that lossy formats keep it, and different in every corner."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows / height, columns / width, 1 - (rows + columns) / (height + width)]
    return (20 + 200 * np.stack(channels, axis=-1)).astype(np.uint8)


def noisy_picture(seed: int = 0, low: int = 30, high: int = 200) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (*SIDES, 3), dtype=np.uint8)


def encode(picture: np.ndarray | Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def close(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference in levels."""
    return float(np.abs(first.astype(float) - second.astype(float)).mean())


# Decoding


def test_decode_keeps_lossless_pictures_exactly() -> None:
    for file_format, options in [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {})]:
        decoded = decoding.decode(encode(noisy_picture(), file_format, **options))
        np.testing.assert_array_equal(decoded, noisy_picture())
        assert decoded.flags.c_contiguous and decoded.dtype == np.uint8


def test_decode_jpeg() -> None:
    for options in ({}, {"progressive": True}, {"subsampling": 0}):
        decoded = decoding.decode(encode(smooth_picture(), "JPEG", quality=95, **options))
        assert decoded.shape == (*SIDES, 3) and decoded.flags.c_contiguous
        assert close(decoded, smooth_picture()) < 3


def test_decode_grey_palette_and_bilevel() -> None:
    grey = Image.fromarray(smooth_picture()).convert("L")
    for file_format in ("PNG", "JPEG"):
        assert close(decoding.decode(encode(grey, file_format)), np.asarray(grey.convert("RGB"))) < 2
    palette = Image.fromarray(smooth_picture()).quantize(64)
    np.testing.assert_array_equal(decoding.decode(encode(palette, "PNG")), np.asarray(palette.convert("RGB")))
    bilevel = grey.convert("1")
    np.testing.assert_array_equal(decoding.decode(encode(bilevel, "PNG")), np.asarray(bilevel.convert("RGB")))


def test_decode_puts_alpha_over_white() -> None:
    rgba = np.dstack([np.full((*SIDES, 3), 100, np.uint8), np.full(SIDES, 255, np.uint8)])
    rgba[:, :30, 3], rgba[:, 30:60, 3] = 0, 51
    decoded = decoding.decode(encode(rgba, "PNG"))
    # A fifth of 100 over four fifths of 255 is 224.
    assert [decoded[0, column].tolist() for column in (0, 40, 80)] == [[255] * 3, [224] * 3, [100] * 3]
    transparent_colour = Image.new("P", (4, 4), 1)
    transparent_colour.putpalette([0, 0, 0, 200, 10, 10])
    assert decoding.decode(encode(transparent_colour, "PNG", transparency=1)).min() == 255


def test_decode_scales_16_bit() -> None:
    levels = np.linspace(0, 65535, 60 * 90).reshape(SIDES).astype(np.uint16)
    for file_format in ("PNG", "TIFF"):
        decoded = decoding.decode(encode(Image.fromarray(levels), file_format))
        np.testing.assert_array_equal(decoded, np.repeat(np.rint(levels / 257)[..., None], 3, axis=-1))


def test_decode_cmyk_jpeg() -> None:
    cmyk = Image.fromarray(smooth_picture()).convert("CMYK")
    assert close(decoding.decode(encode(cmyk, "JPEG", quality=95)), smooth_picture()) < 3


def test_decode_takes_the_first_frame() -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    for file_format, options in [("GIF", {}), ("WEBP", {"lossless": True})]:
        animation = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
        assert (decoding.decode(animation) == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_applies_exif_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(smooth_picture(), "JPEG", quality=95, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))))
    assert close(decoding.decode(encoded), upright) < 1
    assert upright.shape[:2] == (SIDES if orientation < 5 else SIDES[::-1])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_decode_ignores_a_broken_exif_block() -> None:
    block = b"Exif\0\0MM\0\x2a\xff\xff\xff\xff"
    encoded = encode(smooth_picture(), "JPEG")
    encoded = encoded[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + encoded[2:]
    assert decoding.decode(encoded).shape == (*SIDES, 3)


def test_decode_at_reduced_scale_keeps_both_sides() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for height, width in [(480, 640), (513, 257), (1000, 300), (128, 128), (100, 80)]:
        for options in ({}, {"exif": exif}):
            encoded = encode(smooth_picture(height, width), "JPEG", **options)
            full = decoding.decode(encoded).shape[:2]
            for min_size in (1, 64, 128):
                reduced = decoding.decode(encoded, min_size=min_size).shape[:2]
                assert min(reduced) >= min(min_size, *full)
                assert reduced[0] <= full[0] and reduced[1] <= full[1]
    assert decoding.decode(encode(smooth_picture(480, 640), "JPEG"), min_size=200).shape[:2] == (240, 320)


def test_decode_passes_arrays_through() -> None:
    picture = noisy_picture()
    assert decoding.decode(picture, min_size=8) is picture
    for wrong in (picture[..., 0], picture.astype(np.float32), np.zeros((0, 4, 3), np.uint8), picture[..., :2]):
        with pytest.raises(decoding.DecodeError, match="must be uint8"):
            decoding.decode(wrong)


def test_decode_refuses_what_is_no_picture() -> None:
    jpeg, png = encode(noisy_picture(), "JPEG"), encode(noisy_picture(), "PNG")
    cases = [b"", b"no picture", b"\xff\xd8\xff", jpeg[:100], jpeg[: len(jpeg) // 2], png[: len(png) // 2]]
    for broken in cases:
        with pytest.raises(decoding.DecodeError):
            decoding.decode(broken)
    with pytest.raises(decoding.DecodeError, match="unknown range"):
        decoding.decode(encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))


@pytest.mark.filterwarnings("ignore")
def test_decode_of_damaged_files_gives_a_picture_or_a_decode_error() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rng = np.random.default_rng(0)
    for file_format, options in [("JPEG", {"exif": exif}), ("PNG", {}), ("GIF", {}), ("WEBP", {}), ("TIFF", {})]:
        sound = np.frombuffer(encode(smooth_picture(16, 16), file_format, **options), np.uint8)
        for _ in range(100):
            damaged = sound.copy()
            damaged[rng.integers(min(len(sound), 200), size=3)] = rng.integers(256, size=3)
            try:
                decoded = decoding.decode(damaged.tobytes(), min_size=8)
            except decoding.DecodeError:
                continue
            assert decoded.ndim == 3 and decoded.shape[2] == 3 and decoded.dtype == np.uint8


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decode_refuses_huge_pictures() -> None:
    jpeg = bytearray(encode(noisy_picture(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 30000, 30000)
    with pytest.raises(decoding.DecodeError, match="30000 x 30000"):
        decoding.decode(bytes(jpeg), min_size=128)
    png = encode(noisy_picture(), "PNG")
    for side in (10_000, 30_000):  # above Pillow's warning, above its error
        header = b"IHDR" + struct.pack(">II", side, side) + png[24:29]
        bomb = png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]
        with pytest.raises(decoding.DecodeError, match="pixels"):
            decoding.decode(bomb)


# Cropping and resizing


DECILES = np.linspace(0, 1, 11)[1:-1]


def test_crop_boxes_lie_inside_and_are_distributed_as_those_that_fit() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([tf.sample_crop_box(240, 320, rng) for _ in range(4000)])
    top, left, height, width = boxes.T
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] > 0).all()
    assert (top + height <= 240).all() and (left + width <= 320).all()
    area, ratio = rng.uniform(0.2, 1.0, 100_000), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), 100_000))
    fits = (np.sqrt(area * 240 * 320 * ratio) <= 320) & (np.sqrt(area * 240 * 320 / ratio) <= 240)
    for drawn, expected in ((height * width / (240 * 320), area[fits]), (width / height, ratio[fits])):
        np.testing.assert_allclose(np.quantile(drawn, DECILES), np.quantile(expected, DECILES), atol=0.03)
        assert expected.min() - 0.02 < drawn.min() and drawn.max() < expected.max() + 0.02


def test_crop_boxes_lie_anywhere() -> None:
    rng = np.random.default_rng(1)
    boxes = np.array([tf.sample_crop_box(1000, 500, rng, scale=(0.1, 0.3)) for _ in range(4000)])
    for start, room in ((boxes[:, 0], 1000 - boxes[:, 2]), (boxes[:, 1], 500 - boxes[:, 3])):
        np.testing.assert_allclose(np.quantile(start / room, DECILES), DECILES, atol=0.04)


@pytest.mark.parametrize(
    ("sides", "box"),
    [((1000, 30), (480, 0, 40, 30)), ((30, 1000), (0, 480, 30, 40)), ((1, 1), (0, 0, 1, 1)), ((1, 9), (0, 4, 1, 1))],
)
def test_crop_falls_back_to_the_centre(sides: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    scale = (1.5, 1.5)  # no box of this area fits
    assert tf.sample_crop_box(*sides, np.random.default_rng(0), scale=scale) == box


def test_random_resized_crop() -> None:
    for height, width in [(300, 200), (20, 300), (7, 5), (64, 64)]:
        picture = smooth_picture(height, width)
        crop = tf.random_resized_crop(picture, np.random.default_rng(3), size=64)
        assert crop.shape == (64, 64, 3) and crop.dtype == np.uint8 and crop.flags.c_contiguous
        again = tf.random_resized_crop(picture, np.random.default_rng(3), size=64)
        np.testing.assert_array_equal(crop, again)
    other = tf.random_resized_crop(picture, np.random.default_rng(4), size=64)
    assert (crop != other).any()


def test_a_crop_of_a_large_jpeg_is_decoded_small_and_shows_the_same_part(monkeypatch) -> None:
    picture = smooth_picture(640, 960)
    encoded, decoded = encode(picture, "JPEG", quality=95), []
    decode = decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda *a, **k: decoded.append(decode(*a, **k)) or decoded[-1])
    for seed in range(30):
        small = tf.random_resized_crop(encoded, np.random.default_rng(seed), size=64)
        full = tf.random_resized_crop(picture, np.random.default_rng(seed), size=64)
        assert np.abs(small.astype(int) - full).max() <= 6
    heights = {pixels.shape[0] for pixels in decoded[::2]}
    assert heights < {640, 320, 160, 80} and len(heights) > 1


def test_picture_size_is_that_of_the_decoded_picture() -> None:
    exif = Image.Exif()
    for orientation in (1, 3, 6):
        exif[0x0112] = orientation
        for file_format in ("JPEG", "PNG", "WEBP"):
            encoded = encode(smooth_picture(), file_format, exif=exif)
            assert decoding.picture_size(encoded) == decoding.decode(encoded).shape[:2]
    assert decoding.picture_size(smooth_picture()) == SIDES
    assert decoding.picture_size(encode(Image.new("CMYK", (8, 9)), "JPEG")) == (9, 8)
    for broken in (b"", b"no picture", encode(smooth_picture(), "PNG")[:20]):
        with pytest.raises(decoding.DecodeError):
            decoding.picture_size(broken)


def test_resize_averages_when_it_shrinks() -> None:
    picture = noisy_picture()
    blocks = picture.reshape(30, 2, 30, 3, 3).mean(axis=(1, 3))
    assert np.abs(tf.resize(picture, size=30) - blocks).max() <= 1
    stripes = np.tile(np.uint8([[[0] * 3, [255] * 3]]), (10, 32, 1))  # 10 x 64: one side shrinks, the other grows
    assert np.abs(tf.resize(stripes, size=32).astype(int) - 128).max() <= 1, "alternating columns average to grey"
    np.testing.assert_array_equal(tf.resize(picture[:, :60], size=60), picture[:, :60])


def test_hflip() -> None:
    flipped = tf.hflip(noisy_picture())
    np.testing.assert_array_equal(flipped, noisy_picture()[:, ::-1])
    assert flipped.flags.c_contiguous


def test_may_flip() -> None:
    sides = ["A dog on the left.", "RIGHT of the box", "the leftmost cat", "the right-most cat", "left-hand side"]
    sides += ["the lefthand door", "a right-handed man", "he turns leftwards", "(left)"]
    assert not any(tf.may_flip(caption) for caption in sides)
    others = ["a bright light", "leftover pizza", "an upright piano", "turning counterclockwise", "", "copyright"]
    assert all(tf.may_flip(caption) for caption in others)


# Normalising


def test_the_device_normalises_and_figures_undo_it() -> None:
    picture = noisy_picture(low=0, high=256)
    values = np.asarray(normalised(picture))
    assert values.dtype == np.float32 and values.shape == picture.shape
    np.testing.assert_allclose(values, (picture / 255 - IMAGENET_MEAN) / IMAGENET_STD, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(normalised(values), values)
    np.testing.assert_array_equal(tf.denormalise(values), picture)
    np.testing.assert_array_equal(tf.denormalise(np.float32([[-9, 0, 9]])), [[0, round(0.456 * 255), 255]])
