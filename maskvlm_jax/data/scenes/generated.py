"""What generated examples of tasks share: each is a function of (seed, split, index) alone, as the scenes are."""

import hashlib
import operator
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from maskvlm_jax.data.scenes.drawing import draw, noise_words
from maskvlm_jax.data.scenes.source import Scenes, bits_of
from maskvlm_jax.data.scenes.world import NOVEL_KINDS, SEEN_KINDS, Dice, Scene, SceneObject

Kind = tuple[str, str]  # colour and shape


class Generated:
    """Random access to the examples of one split. A subclass makes one.

    Pictures are of scenes of their own, like those of `Scenes` and none of them; `novel` shows the kinds that no other
    split shows.

    Args:
        split, image_size, seed, length: as of `Scenes`.

    Attributes:
        name, version: of what is made; the version is raised whenever any example changes. The name is of `STREAMS`.
        kinds: the (colour, shape) that occur in the split.
    """

    name: ClassVar[str]
    version: ClassVar[int]

    def __init__(self, *, split: str, image_size: int = 64, seed: int = 0, length: int | None = None):
        self._scenes = Scenes(split=split, image_size=image_size, seed=seed, length=length)
        self.split, self.image_size, self.seed = split, image_size, seed
        self.kinds: Sequence[Kind] = NOVEL_KINDS if split == "novel" else SEEN_KINDS
        self.report: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._scenes)

    def id(self, index: int) -> str:
        """The example's name, such as "test-000042"; nothing is drawn."""
        return self._scenes.id(index)

    @property
    def fingerprint(self) -> str:
        """A sha256 in hex that tells apart any two sources with different examples."""
        key = f"{self.name} {self.version} {self._scenes.fingerprint}"
        return hashlib.sha256(key.encode()).hexdigest()

    def dice(self, index: int, part: int = 0) -> Dice:
        """The rolls of an example, without end, or of one of its parts, 0 to 7."""
        return Dice(_words(self._bits(index, part)))

    def drawn(self, scene: Scene, index: int, part: int) -> np.ndarray:
        """A picture of the scene, (image_size, image_size, 3) uint8, with the noise of that part of the example."""
        noise = self._bits(index, part + 8).random_raw(noise_words(self.image_size))
        return draw(scene, noise, image_size=self.image_size)

    def _bits(self, index: int, part: int) -> np.random.Philox:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: index {index} is not among the {len(self)} of {self.split}")
        return bits_of(self.seed, self.split, index, stream=self.name, part=part)

    def __getitem__(self, index: int) -> dict[str, Any]:
        raise NotImplementedError


def _words(bits: np.random.Philox) -> Iterator[int]:
    while True:
        yield from bits.random_raw(32).tolist()


def near(kind: Kind, kinds: Sequence[Kind]) -> tuple[Kind, ...]:
    """The kinds that share colour or shape with one of them; all others where there is none."""
    others = [other for other in kinds if other != kind]
    alike = tuple(other for other in others if other[0] == kind[0] or other[1] == kind[1])
    return alike or tuple(others)


def repainted(thing: SceneObject, kind: Kind) -> SceneObject:
    """The object in another colour and shape."""
    return thing._replace(colour=kind[0], shape=kind[1])
