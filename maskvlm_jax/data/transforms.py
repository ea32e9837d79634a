"""Pictures on the host: cropping, resizing and flipping, in NumPy and OpenCV; 8-bit throughout."""

import math
import re

import cv2
import numpy as np

from maskvlm_jax.data import decoding
from maskvlm_jax.runtime.pixels import IMAGENET_MEAN, IMAGENET_STD

# Pictures are prepared by one process a core; OpenCV's own threads would only compete with the other processes.
cv2.setNumThreads(0)

CROP_TRIES = 10
_SIDE_WORDS = re.compile(r"\b(left|right)(most|wards?|-?hand(ed)?)?\b", re.IGNORECASE)


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
    image: bytes | np.ndarray,
    rng: np.random.Generator,
    *,
    size: int,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """Decodes a picture, cuts out a box drawn by `sample_crop_box` and resizes it to uint8 (size, size, 3).

    The box is drawn first: a JPEG whose box has more pixels than are asked for is decoded at a smaller scale.

    Raises:
      DecodeError: as `decoding.decode`.
    """
    full_height, full_width = decoding.picture_size(image)
    top, left, height, width = sample_crop_box(full_height, full_width, rng, scale=scale, ratio=ratio)
    pixels = decoding.decode(image, min_size=(-(-size * full_height // height), -(-size * full_width // width)))
    rows, columns = pixels.shape[0] / full_height, pixels.shape[1] / full_width
    bottom, right = round((top + height) * rows), round((left + width) * columns)
    return resize(pixels[round(top * rows) : bottom, round(left * columns) : right], size=size)


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


def denormalise(image: np.ndarray) -> np.ndarray:
    """Normalised pixels, (image / 255 - mean) / std of ImageNet, to uint8 (..., 3); values out of range are clipped."""
    values = (np.asarray(image, np.float32) * np.float32(IMAGENET_STD) + np.float32(IMAGENET_MEAN)) * 255
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)
