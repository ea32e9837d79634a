"""Pictures of scenes, in integer arithmetic only: the same bytes on every machine."""

import functools

import cv2
import numpy as np

from maskvlm_jax.data.scenes.world import Scene, SceneObject

# Every colour is brighter than every background, so that "here is an object" is a linear feature of the pixels. With
# light and dark grounds mixed it is none, and shapes are learned several times later.
RGB = {
    "red": (255, 62, 50), "orange": (255, 150, 20), "yellow": (255, 238, 50), "green": (60, 225, 80),
    "cyan": (60, 230, 250), "blue": (90, 140, 255), "purple": (190, 95, 255), "pink": (255, 150, 215),
}  # fmt: skip
BACKGROUND_RGB = {
    "grey": (80, 82, 86), "black": (14, 14, 16), "navy": (18, 24, 78), "teal": (8, 66, 64),
    "brown": (76, 46, 26),
}  # fmt: skip

_GRID = 40  # the outlines below are given on a 40x40 square
_POLYGONS = {
    "square": ((3, 3), (37, 3), (37, 37), (3, 37)),
    "triangle": ((20, 1), (40, 38), (0, 38)),
    "star": ((20, 0), (25, 14), (40, 14), (28, 23), (33, 38), (20, 29), (7, 38), (12, 23), (0, 14), (15, 14)),
    "cross": ((14, 0), (26, 0), (26, 14), (40, 14), (40, 26),
              (26, 26), (26, 40), (14, 40), (14, 26), (0, 26), (0, 14), (14, 14)),
    "heart": ((1, 17), (39, 17), (20, 39)),
}  # fmt: skip
# (x, y, radius, 1 to fill or 0 to cut out), painted after the polygon.
_DISCS = {
    "circle": ((20, 20, 20, 1),),
    "ring": ((20, 20, 20, 1), (20, 20, 10, 0)),
    "heart": ((11, 12, 11, 1), (29, 12, 11, 1)),
    "moon": ((20, 20, 20, 1), (30, 15, 17, 0)),
}
_FINE = 8  # outlines are painted this many times finer than the picture, then averaged


@functools.cache
def _coverage(shape: str, side: int) -> np.ndarray:
    """How many of the `_FINE`² points in each pixel lie within the outline: (side, side) uint16."""
    fine = side * _FINE
    canvas = np.zeros((fine, fine), np.uint8)
    if shape in _POLYGONS:
        cv2.fillPoly(canvas, [np.array(_POLYGONS[shape], np.int32) * (fine - 1) // _GRID], 1)
    for x, y, radius, fill in _DISCS.get(shape, ()):
        x, y, radius = (length * (fine - 1) // _GRID for length in (x, y, radius))
        cv2.circle(canvas, (x, y), radius, fill, cv2.FILLED)
    return canvas.reshape(side, _FINE, side, _FINE).sum(axis=(1, 3), dtype=np.uint16)


@functools.cache
def _ink(texture: str, side: int, unit: int) -> np.ndarray:
    """Where the texture's second colour goes, as a (side, side) bool; `unit` pixels is the width of a stripe or dot."""
    y, x = np.mgrid[:side, :side] // unit
    if texture == "striped":
        return y % 2 == 1
    return (x % 2 == 1) & (y % 2 == 1)


@functools.cache
def _paint(shape: str, colour: str, texture: str, side: int, unit: int) -> tuple[np.ndarray, np.ndarray]:
    """(weight of what lies below, colour to add), both in `_FINE`²ths: (side, side, 1) and (side, side, 3) uint16."""
    base = np.array(RGB[colour], np.uint16)
    fill = np.broadcast_to(base, (side, side, 3))
    if texture != "plain":
        second = base * 11 // 20 if texture == "striped" else (base + 3 * 255) // 4  # dark stripes, light dots
        fill = np.where(_ink(texture, side, unit)[..., None], second, base)
    coverage = _coverage(shape, side)[..., None]
    return _FINE**2 - coverage, coverage * fill


@functools.cache
def _ramps(image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """-1 to 1 across the picture in 128ths, along x as (1, size, 1) and along y as (size, 1, 1)."""
    ramp = (np.arange(image_size, dtype=np.int32) * 2 + 1 - image_size) * 128 // image_size
    return ramp[None, :, None], ramp[:, None, None]


def noise_words(image_size: int) -> int:
    """How many 64-bit words of randomness a picture takes."""
    return -(-(image_size**2) // 8)


def draw(scene: Scene, noise: np.ndarray, *, image_size: int) -> np.ndarray:
    """The scene as (image_size, image_size, 3) uint8 RGB; `noise` is `noise_words(image_size)` random uint64 words."""
    grain = noise.astype("<u8").view(np.uint8)[: image_size**2].reshape(image_size, image_size, 1) & 7
    x, y = _ramps(image_size)
    shade = (x * scene.slope[0] + y * scene.slope[1] >> 7) + grain
    picture = (shade + np.array(BACKGROUND_RGB[scene.background], np.int32) - 4).clip(0, 255).astype(np.uint8)
    for thing in scene.objects:
        _draw_object(picture, thing)
    return picture


def _draw_object(picture: np.ndarray, thing: SceneObject) -> None:
    image_size = len(picture)
    x0, y0, x1, y1 = thing.box(image_size)
    below, paint = _paint(thing.shape, thing.colour, thing.texture, x1 - x0, max(1, image_size // 24))
    picture[y0:y1, x0:x1] = (picture[y0:y1, x0:x1] * below + paint) // _FINE**2
