"""Pictures that stand for photographs, with a caption file."""

import csv
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

JPEG_QUALITY = 90


def write_photographs(folder: Path, pictures: int, height: int, width: int) -> None:
    """Smooth colours with grain, whose JPEGs are about as long as those of photographs, and a caption file."""
    rng = np.random.default_rng(0)
    with (folder / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        for i in range(pictures):
            name = f"{i:06d}.jpg"
            (folder / name).write_bytes(_photograph(rng, height, width))
            rows.writerow([name, f"a {rng.choice(['black', 'brown', 'white'])} dog runs over grass number {i}"])


def _photograph(rng: np.random.Generator, height: int, width: int) -> bytes:
    size = (width, height)
    colours = cv2.resize(rng.integers(256, size=(9, 12, 3)).astype(np.float32), size, interpolation=cv2.INTER_CUBIC)
    grain = cv2.GaussianBlur(rng.normal(scale=30, size=(height, width, 3)).astype(np.float32), (0, 0), 1)
    pixels = np.clip(colours + grain, 0, 255).astype(np.uint8)
    return simplejpeg.encode_jpeg(pixels, quality=JPEG_QUALITY, colorspace="RGB")
