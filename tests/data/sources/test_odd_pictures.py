"""Picture files whose metadata, depth or end is unusual: each with the pixels that are right."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from maskvlm_jax.data import decoding, transforms
from tests.data import hostile
from tests.data.sources.tars import jpeg


def with_orientation(value: int | bytes, kind: int = 3) -> bytes:
    """A JPEG with an EXIF block of one entry, written by hand: kinds are 2 text, 3 a short number, 7 bytes."""
    data = struct.pack("<H", value) if isinstance(value, int) else value
    count = 1 if isinstance(value, int) else len(value) // (2 if kind == 3 else 1)
    place = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", 26)
    exif = b"II*\0" + struct.pack("<IHHHI", 8, 1, 0x0112, kind, count) + place + bytes(4) + data
    block = b"Exif\0\0" + exif
    jpeg_data = hostile.encoded(hostile.picture(3), "JPEG", quality=95)
    return jpeg_data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg_data[2:]


NO_ORIENTATIONS = {
    "text": (b"6\0", 2),
    "long text": (b"Rotate 90 CW\0", 2),
    "bytes": (b"\x06", 7),
    "nothing": (0, 3),
    "nine": (9, 3),
    "largest": (65_535, 3),
}


@pytest.mark.parametrize("name", NO_ORIENTATIONS)
def test_an_orientation_that_is_none_leaves_the_picture_upright(name):
    data = with_orientation(*NO_ORIENTATIONS[name])
    upright = decoding.decode(with_orientation(1))
    np.testing.assert_array_equal(decoding.decode(data), upright)
    assert decoding.picture_size(data) == upright.shape[:2]
    transforms.random_resized_crop(data, np.random.default_rng(0), size=16)


@pytest.mark.parametrize("value", range(1, 9))
def test_every_orientation_is_set_upright_as_pillow_does(value):
    data = with_orientation(value)
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    found = decoding.decode(data)
    assert found.shape == expected.shape == (*decoding.picture_size(data), 3)
    assert np.abs(found.astype(int) - expected).mean() < 3  # two decoders


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_sixteen_bits_are_scaled_by_those_in_use(bits):
    ramp = np.linspace(0, 2**bits - 1, 64 * 64).reshape(64, 64).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG")
    pixels = decoding.decode(buffer.getvalue())
    assert (pixels.min(), pixels.max()) == (0, 255) and 120 < pixels.mean() < 135


def test_a_jpeg_without_its_end_is_read_and_one_without_pixels_is_not():
    data = jpeg("red")
    np.testing.assert_array_equal(decoding.decode(data[:-2]), decoding.decode(data))
    big = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(big, "JPEG")
    with pytest.raises(decoding.DecodeError):
        decoding.decode(big.getvalue()[:-200])
    behind = data + b"\0\0 more"
    np.testing.assert_array_equal(decoding.decode(behind), decoding.decode(data))
    with pytest.raises(decoding.DecodeError) as error:
        decoding.decode(hostile.jpeg_that_claims(60_000, 60_000)[:-2])
    assert error.value.kind == "too large"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_is_turned_once(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pictures = {}
    for kind in ("PNG", "TIFF", "WEBP"):
        file = io.BytesIO()
        hostile.picture(3, 20, 40).save(file, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
        pictures[kind] = decoding.decode(file.getvalue())
        assert decoding.picture_size(file.getvalue()) == pictures[kind].shape[:2]
    for kind in ("TIFF", "WEBP"):
        np.testing.assert_array_equal(pictures[kind], pictures["PNG"])


def test_a_jpeg_that_claims_a_huge_size_is_too_large_also_where_it_has_exif():
    data = bytearray(hostile.rotated(1, 6))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", 60_000, 60_000)
    for look in (decoding.picture_size, decoding.decode):
        with pytest.raises(decoding.DecodeError) as error:
            look(bytes(data))
        assert error.value.kind == "too large"


def test_grey_of_16_bits_may_begin_at_white_and_have_holes():
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    usual, turned = io.BytesIO(), io.BytesIO()
    Image.fromarray(values).save(usual, "TIFF")
    Image.fromarray(65535 - values).save(turned, "TIFF", tiffinfo={262: 0})
    assert Image.open(turned).tag_v2[262] == 0
    np.testing.assert_array_equal(decoding.decode(turned.getvalue()), decoding.decode(usual.getvalue()))
    holes = io.BytesIO()
    Image.fromarray(values).save(holes, "PNG", transparency=int(values[3, 3]))
    pixels = decoding.decode(holes.getvalue())
    assert pixels[3, 3].tolist() == [255] * 3 and pixels[3, 2].tolist() != [255] * 3
