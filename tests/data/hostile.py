"""A folder of sixty files such as the web has, made by code: odd ones that must be read, broken ones that must not."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

NOT_A_PICTURE, UNREADABLE, TOO_LARGE, NO_CAPTION = "not a picture", "unreadable", "too large", "no caption"


def picture(number: int, height: int = 48, width: int = 64) -> Image.Image:
    """A smooth picture, each number another."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * 3 + number * 11, columns * 2 + number * 7, rows + columns + number * 5]
    return Image.fromarray((np.stack(channels, axis=-1) % 256).astype(np.uint8))


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def rotated(number: int, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(number), "JPEG", exif=exif)


def png(
    width: int, height: int, *, bits: int = 8, colour: int = 0, chunks: tuple[tuple[bytes, bytes], ...] = ()
) -> bytes:
    """A PNG from its parts, whatever they say."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(*part) for part in chunks), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg_that_claims(width: int, height: int) -> bytes:
    """A sound JPEG with another size in its header."""
    data = bytearray(encoded(picture(0), "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def sixteen_bits(number: int) -> Image.Image:
    return Image.fromarray(np.asarray(picture(number).convert("L")).astype(np.uint16) * 257)


def animation(number: int, file_format: str) -> bytes:
    return encoded(
        picture(number), file_format, save_all=True, append_images=[picture(number + 1), picture(number + 2)]
    )


def with_broken_exif() -> bytes:
    data = bytearray(rotated(1, 6))
    start = data.index(b"Exif\0\0") + 6
    data[start : start + 16] = b"\xff" * 16
    return bytes(data)


def flat(length: int) -> bytes:
    return zlib.compress(bytes(length), 9)


def odd_pictures() -> dict[str, bytes]:
    """Thirty-five files that are pictures, whatever they look like."""
    transparent = picture(20).convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(transparent.size))
    return {
        "plain.jpg": encoded(picture(1), "JPEG"),
        "progressive.jpg": encoded(picture(2), "JPEG", progressive=True),
        "grey.jpg": encoded(picture(3).convert("L"), "JPEG"),
        "cmyk.jpg": encoded(picture(4).convert("CMYK"), "JPEG"),
        "full_chroma.jpg": encoded(picture(5), "JPEG", subsampling=0),
        "lowest_quality.jpg": encoded(picture(6), "JPEG", quality=1),
        **{f"turned{orientation}.jpg": rotated(6 + orientation, orientation) for orientation in range(2, 9)},
        "broken_exif.jpg": with_broken_exif(),
        "garbage_behind.jpg": encoded(picture(15), "JPEG") + b"garbage" * 100,
        "is_a_png.jpg": encoded(picture(16), "PNG"),
        "is_a_jpeg.png": encoded(picture(17), "JPEG"),
        "no_ending": encoded(picture(18), "JPEG"),
        "colour.png": encoded(picture(19), "PNG"),
        "transparent.png": encoded(transparent, "PNG"),
        "palette.png": encoded(picture(21).convert("P"), "PNG"),
        "palette_transparent.png": encoded(picture(22).convert("P"), "PNG", transparency=3),
        "grey_alpha.png": encoded(picture(23).convert("LA"), "PNG"),
        "one_bit.png": encoded(picture(24).convert("1"), "PNG"),
        "sixteen_bits.png": encoded(sixteen_bits(25), "PNG"),
        "sixteen_bits.tif": encoded(sixteen_bits(26), "TIFF"),
        "still.gif": encoded(picture(27), "GIF"),
        "animated.gif": animation(28, "GIF"),
        "still.webp": encoded(picture(31), "WEBP"),
        "animated.webp": animation(32, "WEBP"),
        "bitmap.bmp": encoded(picture(35), "BMP"),
        "one_pixel.png": encoded(picture(36, 1, 1), "PNG"),
        "strip.png": encoded(picture(37, 2, 3000), "PNG"),
        "späße 图片.jpg": encoded(picture(38), "JPEG"),
        "shouting.JPG": encoded(picture(39), "JPEG"),
    }


def broken_pictures() -> dict[str, tuple[bytes, str]]:
    """Nineteen files that are not, and what is wrong."""
    jpeg, image = encoded(picture(50), "JPEG"), encoded(picture(51), "PNG")
    bitmap = encoded(picture(54), "BMP")
    noise = np.random.default_rng(0).bytes(5000)
    return {
        "empty.jpg": (b"", UNREADABLE),
        "half.jpg": (jpeg[: len(jpeg) // 2], NOT_A_PICTURE),
        "header_alone.jpg": (jpeg[:40], NOT_A_PICTURE),
        "half.png": (image[: len(image) // 2], NOT_A_PICTURE),
        "half.gif": (animation(52, "GIF")[:60], NOT_A_PICTURE),
        "half.webp": (encoded(picture(53), "WEBP")[:50], NOT_A_PICTURE),
        "noise.jpg": (noise, NOT_A_PICTURE),
        "noise_behind_a_start.jpg": (b"\xff\xd8\xff\xe0" + noise, NOT_A_PICTURE),
        "not_found.jpg": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", NOT_A_PICTURE),
        "text.png": (b"a dog on a lawn\n", NOT_A_PICTURE),
        "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', NOT_A_PICTURE),
        "zeros.jpg": (bytes(4096), NOT_A_PICTURE),
        "no_pixels.png": (png(64, 64), NOT_A_PICTURE),
        "no_width.png": (png(0, 64, chunks=((b"IDAT", flat(64)),)), NOT_A_PICTURE),
        "text_bomb.png": (png(8, 8, chunks=((b"zTXt", b"a\0\0" + flat(200_000_000)),)), NOT_A_PICTURE),
        "float.tif": (encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), NOT_A_PICTURE),
        "bomb.png": (png(50_000, 50_000, bits=1, chunks=((b"IDAT", flat(1000)),)), TOO_LARGE),
        "bomb.jpg": (jpeg_that_claims(65_000, 65_000), TOO_LARGE),
        "bomb.bmp": (bitmap[:18] + struct.pack("<ii", 100_000, 100_000) + bitmap[26:], TOO_LARGE),
    }


def odd_captions() -> dict[str, tuple[str, str]]:
    """Six sound pictures by name: the caption, and what is wrong with it, "" where nothing is."""
    return {
        "megabyte.jpg": ("a very long story " * 60_000, ""),
        "emoji.jpg": ("🐕 in the 🌧️", ""),
        "right_to_left.jpg": ("כלב על הדשא", ""),
        "control.jpg": ("a dog\x07 \x1b[31mred\x1b[0m \u202e\ufeff", ""),
        "long_word.jpg": ("d" + "o" * 5_000 + "g", ""),
        "dots.jpg": ("...", NO_CAPTION),
    }


def write(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Writes `images/` and `captions.jsonl`; returns what is wrong by name, and the names of sound examples."""
    import json

    (folder / "images").mkdir(parents=True)
    wrong, right, lines = {}, [], []

    def add(name: str, data: bytes, caption: str, reason: str) -> None:
        (folder / "images" / name).write_bytes(data)
        lines.append(json.dumps({"image": name, "caption": caption}))
        if reason:
            wrong[name] = reason
        else:
            right.append(name)

    for name, data in odd_pictures().items():
        add(name, data, f"a picture of {name}", "")
    for name, (data, reason) in broken_pictures().items():
        add(name, data, "a picture that is none", reason)
    for number, (name, (caption, reason)) in enumerate(odd_captions().items()):
        add(name, encoded(picture(60 + number), "JPEG"), caption, reason)
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return wrong, right
