"""A `Searcher` without a model: scenes in a folder, found by the words of their captions.

python -m tests.search.fake FOLDER COUNT SIZE    draws scenes and serves them
"""

import os
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from maskvlm_jax.data import decoding
from maskvlm_jax.data.scenes.source import Scenes
from maskvlm_jax.search import server
from maskvlm_jax.search.searching import Found, Hit, Part
from maskvlm_jax.settings import command_line


def draw_scenes(folder: Path, count: int, size: int) -> list[str]:
    """Writes test scenes as PNG files; returns a caption of each."""
    source = Scenes(split="test", image_size=size)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        cv2.imwrite(str(folder / f"{source.id(i)}.png"), source[i]["image"][:, :, ::-1])
    return [source.captions(i)[0] for i in range(count)]


class FakeModel:
    """Whose tokens are words, of which it reads 20."""

    max_length = 20

    @property
    def tokenizer(self):
        return self

    def encode(self, text: str, max_length: int):
        valid = np.arange(max_length) < len(text.split())
        return valid, valid, valid


class FakeSearcher:
    """Cosines are shares of common words, or of like pixels."""

    model = FakeModel()

    def __init__(self, folder: Path, captions: list[str]):
        self.folder, self.captions = folder, captions
        self.files = sorted(path.name for path in folder.iterdir() if path.suffix == ".png")
        self.pictures, self.model_name = len(captions), "fake"
        self.small = np.stack([self._small((folder / name).read_bytes()) for name in self.files])

    def search(self, parts, *, k=20, rerank=64, cutoff=0.5) -> Found:
        if parts[0].text.startswith("slow"):
            time.sleep(0.05 if parts[0].text == "slow" else 5)
        cosine = sum(part.weight * self._scores(part) for part in parts) / sum(abs(part.weight) for part in parts)
        alone = len(parts) == 1 and parts[0].text != ""
        rows = np.argsort(-cosine, kind="stable")[:k].tolist()
        hits = [Hit(r, self.files[r], float(cosine[r]), float(cosine[r]) if alone else None) for r in rows]
        return Found(hits, sum((hit.probability or 0) >= cutoff for hit in hits), cutoff, self.pictures)

    def _scores(self, part: Part) -> np.ndarray:
        if part.text:
            words = set(part.text.lower().split())
            return np.array([len(words & set(caption.split())) / len(words) for caption in self.captions])
        if part.like is not None and not 0 <= part.like < self.pictures:
            raise ValueError(f"the index has no picture {part.like}")
        own = self.small[part.like] if part.image is None else self._small(part.image)
        return 1 - np.abs(self.small - own).mean(axis=(1, 2, 3)) / 255

    @staticmethod
    def _small(content: bytes) -> np.ndarray:
        return cv2.resize(decoding.decode(content), (16, 16), interpolation=cv2.INTER_AREA).astype(np.float32)

    def word_weights(self, text, row):
        if not 0 <= row < self.pictures:
            raise LookupError(row)
        caption = set(self.captions[row].split())
        return [(word, 0.4 if word in caption else -0.1) for word in text.split()]

    def picture(self, row: int) -> Path:
        if not 0 <= row < self.pictures:
            raise LookupError(f"{self.folder}: no row {row}")
        path = self.folder / self.files[row]
        if os.path.realpath(path) != os.path.join(os.path.realpath(self.folder), self.files[row]) or not path.is_file():
            raise LookupError(f"{path} is not in the folder any more")
        return path


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    searcher = FakeSearcher(folder, draw_scenes(folder, int(sys.argv[2]), int(sys.argv[3])))
    command_line.leave(command_line.run(lambda: server.serve(searcher, port=0)))
