"""RandAugment with the ten operations that ALBEF uses on pictures with captions.

Inverting, posterising or shifting colours would make captions such as "a red bus" untrue, so ALBEF leaves them out.
Every operation takes and returns a uint8 (height, width, 3) picture and leaves its argument as it was.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import cv2
import numpy as np

Image = np.ndarray  # uint8, (height, width, 3)

MAX_MAGNITUDE = 10
APPLY_PROBABILITY = 0.5
FILL = (128, 128, 128)  # what a geometric operation moves into the picture from outside
MAX_SHEAR = 0.3  # slope
MAX_ROTATION = 30.0  # degrees
MAX_TRANSLATION = 10 / 256  # of the side: ALBEF moves by up to 10 pixels and pre-trains on 256 x 256


def rand_augment(image: Image, rng: np.random.Generator, *, num_ops: int = 2, magnitude: float = 7) -> Image:
    """Applies `num_ops` operations drawn with replacement, each with probability 1/2, as ALBEF's RandomAugment(2, 7).

    The strengths are ALBEF's: with m = magnitude / 10, brightness and sharpness by 0.1 + 1.8 m, shear by 0.3 m,
    rotation by 30 m degrees, the geometric ones in a random direction. Three things differ: translations are
    10 m / 256 of the side (ALBEF: 10 m pixels at any size); sharpening saturates at 0 and 255 (ALBEF's wraps around);
    pictures are turned about the centre of the pixel grid (ALBEF's: half a pixel beside it).

    Args:
      image: uint8 (height, width, 3).
      rng: source of randomness.
      num_ops: operations drawn.
      magnitude: strength from 0 to 10.

    Returns:
      uint8 picture of the same shape; `image` itself where no operation was applied.
    """
    strength = magnitude / MAX_MAGNITUDE
    operations = tuple(OPERATIONS.values())
    for index in rng.integers(len(operations), size=num_ops):
        if rng.random() < APPLY_PROBABILITY:
            direction = 1 if rng.random() < 0.5 else -1
            image = operations[index](image, strength, direction)
    return image


def auto_contrast(image: Image) -> Image:
    """Stretches each channel linearly to the whole range 0..255; equal to Pillow's `ImageOps.autocontrast`."""
    return _apply_tables(image, [_stretching_table(_histogram(image, channel)) for channel in range(3)])


def equalize(image: Image) -> Image:
    """Flattens each channel's histogram; equal to Pillow's `ImageOps.equalize` (OpenCV's `equalizeHist` is not)."""
    return _apply_tables(image, [_equalizing_table(_histogram(image, channel)) for channel in range(3)])


def brightness(image: Image, factor: float) -> Image:
    """Multiplies by `factor`: 0 is black, 1 the picture."""
    # float32 and truncation, so that the table is to the last bit that of Pillow's `ImageEnhance.Brightness`.
    table = np.clip(np.arange(256, dtype=np.float32) * np.float32(factor), 0, 255).astype(np.uint8)
    return cv2.LUT(image, table)


def sharpness(image: Image, factor: float) -> Image:
    """Blends with a smoothed copy: 0 is smoothed, 1 the picture, above 1 sharpened; the outermost pixels stay."""
    smoothing = np.ones((3, 3))
    smoothing[1, 1] = 5
    kernel = (1 - factor) * smoothing / 13
    kernel[1, 1] += factor
    result = image.copy()
    result[1:-1, 1:-1] = cv2.filter2D(image, -1, kernel)[1:-1, 1:-1]
    return result


def shear_x(image: Image, slope: float) -> Image:
    """Moves each row to the right by `slope` times its distance from the top."""
    return _warp(image, [[1, slope, 0], [0, 1, 0]])


def shear_y(image: Image, slope: float) -> Image:
    """Moves each column down by `slope` times its distance from the left."""
    return _warp(image, [[1, 0, 0], [slope, 1, 0]])


def translate_x(image: Image, fraction: float) -> Image:
    """Moves the picture to the right by `fraction` of its width."""
    return _warp(image, [[1, 0, fraction * image.shape[1]], [0, 1, 0]])


def translate_y(image: Image, fraction: float) -> Image:
    """Moves the picture down by `fraction` of its height."""
    return _warp(image, [[1, 0, 0], [0, 1, fraction * image.shape[0]]])


def rotate(image: Image, degrees: float) -> Image:
    """Turns the picture counterclockwise about its centre."""
    height, width = image.shape[:2]
    return _warp(image, cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0))


def _enhancement_factor(strength: float) -> float:
    return 0.1 + 1.8 * strength


# name -> function of (image, strength in 0..1, direction -1 or 1)
OPERATIONS: Mapping[str, Callable[[Image, float, int], Image]] = MappingProxyType(
    {
        "Identity": lambda image, strength, direction: image,
        "AutoContrast": lambda image, strength, direction: auto_contrast(image),
        "Equalize": lambda image, strength, direction: equalize(image),
        "Brightness": lambda image, strength, direction: brightness(image, _enhancement_factor(strength)),
        "Sharpness": lambda image, strength, direction: sharpness(image, _enhancement_factor(strength)),
        "ShearX": lambda image, strength, direction: shear_x(image, direction * MAX_SHEAR * strength),
        "ShearY": lambda image, strength, direction: shear_y(image, direction * MAX_SHEAR * strength),
        "TranslateX": lambda image, strength, direction: translate_x(image, direction * MAX_TRANSLATION * strength),
        "TranslateY": lambda image, strength, direction: translate_y(image, direction * MAX_TRANSLATION * strength),
        "Rotate": lambda image, strength, direction: rotate(image, direction * MAX_ROTATION * strength),
    }
)


def _warp(image: Image, matrix: np.ndarray | list[list[float]]) -> Image:
    """Moves the pixel at (x, y) to `matrix` @ (x, y, 1)."""
    height, width = image.shape[:2]
    return cv2.warpAffine(
        image, np.asarray(matrix, np.float64), (width, height), flags=cv2.INTER_LINEAR, borderValue=FILL
    )


def _histogram(image: Image, channel: int) -> np.ndarray:
    return cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(np.int64)


def _stretching_table(histogram: np.ndarray) -> np.ndarray:
    occupied = np.flatnonzero(histogram)
    low, high = occupied[0], occupied[-1]
    if low == high:
        return np.arange(256)
    scale = 255.0 / (high - low)
    return np.clip(np.arange(256) * scale - low * scale, 0, 255)


def _equalizing_table(histogram: np.ndarray) -> np.ndarray:
    # The brightest level in use is left out of the step, so that the others spread up to 255.
    step = (histogram.sum() - histogram[np.flatnonzero(histogram)[-1]]) // 255
    if step == 0:
        return np.arange(256)
    below = np.cumsum(histogram) - histogram
    return np.clip((step // 2 + below) // step, 0, 255)


def _apply_tables(image: Image, tables: list[np.ndarray]) -> Image:
    """Maps each channel through its own table of 256 values, truncated to integers."""
    return cv2.LUT(image, np.stack(tables, axis=-1).astype(np.uint8)[None])
