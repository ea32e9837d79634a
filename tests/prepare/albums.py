"""Sets in memory that tests of packing prepare."""

import io
import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from configs import prepare as configs
from maskvlm_jax.data.sources import records
from maskvlm_jax.prepare import pieces, preparation


def picture(seed: int, height: int = 60, width: int = 80) -> np.ndarray:
    """Smooth random colours: no two are alike, and all keep their look when they are resized."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(pixels: np.ndarray, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


class Album:
    """A source held in memory."""

    def __init__(self, pictures: dict[str, bytes | np.ndarray], captions: dict[str, list[str]] | None = None):
        self._pictures, self._captions, self.report = list(pictures.items()), captions or {}, {"missing_pictures": 2}

    def __len__(self):
        return len(self._pictures)

    def id(self, index: int) -> str:
        return self._pictures[index][0]

    def captions(self, index: int) -> list[str]:
        return self._captions.get(self.id(index), [f"this is {self.id(index)}"])

    def __getitem__(self, index: int) -> dict:
        name, image = self._pictures[index]
        return {"id": name, "image": image, "captions": self.captions(index), "label": index}

    @property
    def fingerprint(self) -> str:
        return repr([name for name, _ in self._pictures])


SOUND = {f"{i:02d}": jpeg(picture(i)) for i in range(10)}


def found_by_root(monkeypatch) -> dict[str, Album]:
    """Sources by root: those that `open_source` finds in the test; small pieces, so that there are several."""
    found = {"sound": Album(SOUND)}
    monkeypatch.setattr(preparation, "open_source", lambda data, split, image_size: found[data["root"]])
    monkeypatch.setattr(pieces, "SCANNED", 4)
    return found


def settings(out: Path, structure: str = "data=parquet", root: str = "sound", against: str = "", **values):
    config = configs.get_config(structure)
    config.data.root = root
    if against:
        config.against.root = against
    common = {"out": str(out), "splits": ("train",), "examples_per_shard": 3, "workers": 1, "min_size": 32}
    for name, value in (common | values).items():
        config[name] = value
    return config


def run(config) -> dict:
    """Prepares, and returns the manifest."""
    preparation.run(config, Path("runs") / config.name)
    return records.read_manifest(Path(config.out) / config.splits[0])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
