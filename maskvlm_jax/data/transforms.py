"""Pictures on the host: decoding, cropping, resizing, flipping and normalising, in NumPy and OpenCV."""

import io
import math
import re
from functools import lru_cache

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from maskvlm_jax.data.rand_augment import rand_augment

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "DecodeError",
    "decode",
    "denormalise",
    "hflip",
    "may_flip",
    "normalise",
    "rand_augment",
    "random_resized_crop",
    "resize",
    "sample_crop_box",
]

# Pictures are prepared by one process a core; OpenCV's own threads would only compete with the other processes.
cv2.setNumThreads(0)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a gigabyte as RGB
CROP_TRIES = 10

_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_SIDE_WORDS = re.compile(r"\b(left|right)(most|wards?|-?hand(ed)?)?\b", re.IGNORECASE)


class DecodeError(ValueError):
    """The bytes are not a picture that can be decoded, or it is too large."""


def decode(image: bytes | np.ndarray, *, min_size: int = 0) -> np.ndarray:
    """Decodes a picture to RGB; transparent parts become white, 16-bit values are scaled, EXIF rotation is applied.

    Args:
      image: encoded picture (of an animation the first frame is taken), or a uint8 (height, width, 3) array, which is
        returned as it is.
      min_size: where positive, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as both sides stay at
        least this long in pixels; much cheaper for large photographs.

    Returns:
      uint8 (height, width, 3), C-contiguous.

    Raises:
      DecodeError: empty, truncated or unknown bytes, more than MAX_PIXELS pixels, or an array of another shape or type.
    """
    if isinstance(image, np.ndarray):
        return _check_array(image)
    if not image:
        raise DecodeError("the file is empty or cannot be read")
    pixels = _decode_plain_jpeg(image, min_size)
    return _decode_any(image, min_size) if pixels is None else pixels


def _check_array(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DecodeError(f"an array must be uint8 (height, width, 3), not {image.dtype} {image.shape}")
    return np.ascontiguousarray(image)


def _decode_plain_jpeg(image: bytes, min_size: int) -> np.ndarray | None:
    """Decodes a sound, upright grey or colour JPEG; None leaves everything else to Pillow."""
    try:
        height, width, colour_space, _ = simplejpeg.decode_jpeg_header(image)
        _check_pixel_count(height, width)
        if colour_space not in ("RGB", "YCbCr", "Gray") or _is_rotated(image):
            return None
        # A factor of at least 2, as scales such as 7/8 have no vector code: slower to decode than the full size.
        return simplejpeg.decode_jpeg(image, min_height=min_size, min_width=min_size, min_factor=2)
    except DecodeError:
        raise
    except ValueError:
        return None


def _is_rotated(image: bytes) -> bool:
    # Most JPEGs have no EXIF block; the search for its mark costs a hundredth of what decoding does.
    if b"Exif\0\0" not in image:
        return False
    try:
        return _orientation(Image.open(io.BytesIO(image))) != 1
    except OSError:  # Pillow is stricter about headers than libjpeg-turbo.
        return False


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # A broken EXIF block raises almost anything, and is no reason to lose the picture.
        return 1


def _decode_any(image: bytes, min_size: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(image)) as picture:
            _check_pixel_count(picture.height, picture.width)
            if min_size > 0:
                picture.draft(None, (min_size, min_size))
            upright = ImageOps.exif_transpose(picture) if _orientation(picture) != 1 else picture
            return np.array(_to_rgb(upright))
    except DecodeError:
        raise
    except Exception as error:  # Pillow's plug-ins raise whatever their parsing ran into, not only OSError.
        raise DecodeError(f"the picture cannot be decoded: {error}") from error


def _check_pixel_count(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise DecodeError(f"a picture of {width} x {height} pixels is over the limit of {MAX_PIXELS} pixels")


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        return _from_16_bit(np.asarray(picture))
    if picture.mode == "F":
        raise DecodeError("pixels are floating-point numbers of unknown range")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def _from_16_bit(values: np.ndarray) -> Image.Image:
    # Pillow's own conversion clips at 255.
    if values.min() < 0 or values.max() > 65535:
        raise DecodeError("pixels have more than 16 bits")
    return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")


def sample_crop_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Draws a crop as torchvision's RandomResizedCrop does.

    Args:
      height: of the picture, in pixels.
      width: of the picture, in pixels.
      rng: source of randomness.
      scale: range of the crop's share of the picture's area, drawn uniformly.
      ratio: range of its width / height, drawn uniformly in the logarithm.

    Returns:
      (top, left, height, width) inside the picture. Where ten draws do not fit into it, the largest centred crop whose
      ratio is in range.
    """
    for _ in range(CROP_TRIES):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_width = max(1, min(width, round(height * ratio[1])))
    crop_height = max(1, min(height, round(width / ratio[0])))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def random_resized_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    size: int,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """Cuts out a box drawn by `sample_crop_box` and resizes it to uint8 (size, size, 3)."""
    top, left, height, width = sample_crop_box(*image.shape[:2], rng, scale=scale, ratio=ratio)
    return resize(image[top : top + height, left : left + width], size=size)


def resize(image: np.ndarray, *, size: int) -> np.ndarray:
    """Squeezes the whole picture to uint8 (size, size, 3), whatever its aspect ratio, as ALBEF does for evaluation."""
    height, width = image.shape[:2]
    # Sides are shrunk by averaging before others are enlarged: OpenCV averages only where no side grows.
    shrunk = min(width, size), min(height, size)
    if shrunk != (width, height):
        image = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
    if shrunk != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(image)


def may_flip(caption: str) -> bool:
    """False where the caption speaks of left or right, which a mirrored picture would contradict."""
    return _SIDE_WORDS.search(caption) is None


def hflip(image: np.ndarray) -> np.ndarray:
    """Mirrors left and right; (height, width, 3), C-contiguous."""
    return cv2.flip(image, 1)


def normalise(
    image: np.ndarray, *, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> np.ndarray:
    """Maps uint8 (height, width, 3) to float32 (image / 255 - mean) / std, channel by channel."""
    return cv2.LUT(image, _normalising_table(tuple(mean), tuple(std)))


@lru_cache(maxsize=8)
def _normalising_table(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    # One look-up a value takes a quarter of the time of float arithmetic on whole pictures.
    table = (np.arange(256)[:, None] / 255 - np.asarray(mean)) / np.asarray(std)
    return table.astype(np.float32)[None]


def denormalise(
    image: np.ndarray, *, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> np.ndarray:
    """Inverse of `normalise` for figures: (..., 3) to uint8, values out of range clipped."""
    values = (np.asarray(image, np.float32) * np.float32(std) + np.float32(mean)) * 255
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)
