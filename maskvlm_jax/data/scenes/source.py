"""The data source `scenes`: pictures of coloured shapes with captions, made by code from an index.

It needs no file and no network, and holds the same bytes on every machine. The pairs of colour and shape in `novel`
occur in no other split, so it measures whether what was learnt of colours and of shapes combines.
"""

import hashlib
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maskvlm_jax.data.scenes.captions import CAPTION_ROLLS, caption
from maskvlm_jax.data.scenes.drawing import draw, noise_words
from maskvlm_jax.data.scenes.world import NOVEL_KINDS, PLACES, SCENE_ROLLS, SEEN_KINDS, Dice, Scene, sample_scene
from maskvlm_jax.runtime.errors import UserError

SPLIT_LENGTHS = {"train": 100_000, "val": 1_000, "test": 1_000, "novel": 1_000}
CAPTIONS_PER_SCENE = 5
MIN_IMAGE_SIZE = 32  # a small object is 6 pixels across there

# Streams of bits beside that of the scenes themselves: no two kinds of examples share one.
STREAMS = {
    name: number
    for number, name in enumerate(
        ("hypotheses", "statements", "products", "expressions", "singles", "questions", "swaps"), start=1
    )
}

_VERSION = 3  # of the generator: raise it whenever any picture or caption changes
_ITEM_WORDS = SCENE_ROLLS + CAPTIONS_PER_SCENE * CAPTION_ROLLS


def bits_of(seed: int, split: str, index: int, *, stream: str = "", part: int = 0) -> np.random.Philox:
    """The stream of bits of one example: each argument has its own bits of the 128-bit key.

    Args:
        stream: of `STREAMS`; "" = the scenes' own.
        part: 0 to 15, of an example that takes several.
    """
    number = STREAMS[stream] if stream else 0
    key = seed << 64 | number << 56 | part << 52 | list(SPLIT_LENGTHS).index(split) << 48 | index
    return np.random.Philox(key=key)


def existing_splits(data: Mapping[str, Any]) -> Sequence[str]:
    """All splits: they are made, not read."""
    return tuple(SPLIT_LENGTHS)


class Scenes:
    """Random access to the scenes of one split: an example is a pure function of (seed, split, index)."""

    _stream = ""

    def __init__(self, *, split: str, image_size: int = 64, seed: int = 0, length: int | None = None):
        """Opens a split; `length` None means its usual length.

        Raises:
          UserError: an unknown split, or a length, image size or seed out of range.
        """
        if split not in SPLIT_LENGTHS:
            raise UserError(f"scenes: there is no split {split!r}; choose one of {', '.join(SPLIT_LENGTHS)}")
        if length is not None and not 0 < length < 2**48:
            raise UserError(f"scenes: length is {length}; give a positive number, or none for {SPLIT_LENGTHS[split]}")
        if image_size < MIN_IMAGE_SIZE:
            raise UserError(f"scenes: image_size is {image_size}; give at least {MIN_IMAGE_SIZE} pixels")
        if not 0 <= seed < 2**64:
            raise UserError(f"scenes: seed is {seed}; give a number from 0 to 2**64 - 1")
        self.split, self.image_size, self.seed = split, image_size, seed
        self.length = SPLIT_LENGTHS[split] if length is None else length
        self.report: dict[str, int] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An example: the source contract's "id", "image" (HxWx3 uint8 RGB) and "captions", and the ground truth.

        "objects" lists each object's shape, colour, size, texture, place and box (x0, y0, x1, y1 in pixels, x1 and y1
        exclusive); "background" is its name; "relations" lists every true (i, relation, j) among the objects.
        """
        bits = self._bits(index)
        words = bits.random_raw(_ITEM_WORDS).tolist()
        noise = bits.random_raw(noise_words(self.image_size))
        scene = self._scene(words)
        return {
            "id": self.id(index),
            "image": draw(scene, noise, image_size=self.image_size),
            "captions": _captions(scene, words),
            "objects": [
                {
                    "shape": thing.shape,
                    "colour": thing.colour,
                    "size": thing.size,
                    "texture": thing.texture,
                    "place": PLACES[thing.place],
                    "box": thing.box(self.image_size),
                }
                for thing in scene.objects
            ],
            "background": scene.background,
            "relations": scene.relations(),
        }

    def id(self, index: int) -> str:
        """The example's name within the project, such as "test-000042"."""
        return f"{self.split}-{self._checked(index):06d}"

    def captions(self, index: int) -> list[str]:
        """The example's captions, without drawing it."""
        words = self._words(index)
        return _captions(self._scene(words), words)

    def scene(self, index: int) -> Scene:
        """What the example shows, without drawing it."""
        return self._scene(self._words(index))

    @property
    def fingerprint(self) -> str:
        """A sha256 in hex that tells apart any two sources with different examples."""
        return self._digest(f"scenes {_VERSION}")

    def _digest(self, generator: str) -> str:
        key = f"{generator} {self.split} {self.seed} {self.length} {self.image_size}"
        return hashlib.sha256(key.encode()).hexdigest()

    def _checked(self, index: int) -> int:
        index = operator.index(index)
        if not 0 <= index < self.length:
            raise IndexError(f"scenes: index {index} is not among the {self.length} of {self.split}")
        return index

    def _bits(self, index: int) -> np.random.Philox:
        """The example's own stream of bits."""
        return bits_of(self.seed, self.split, self._checked(index), stream=self._stream)

    def _words(self, index: int) -> list[int]:
        """The words that decide the scene and its captions; the noise of the picture comes after them in the stream."""
        return self._bits(index).random_raw(_ITEM_WORDS).tolist()

    def _scene(self, words: list[int]) -> Scene:
        return sample_scene(Dice(words), kinds=NOVEL_KINDS if self.split == "novel" else SEEN_KINDS)


def _captions(scene: Scene, words: list[int]) -> list[str]:
    """All captions of a scene; each has its own share of the words."""
    starts = range(SCENE_ROLLS, _ITEM_WORDS, CAPTION_ROLLS)
    return [caption(scene, Dice(words[start : start + CAPTION_ROLLS])) for start in starts]
