"""Evaluation sets: every caption of every decodable picture, in order, without augmentation."""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from maskvlm_jax.data import batch as batches
from maskvlm_jax.data import decoding, transforms
from maskvlm_jax.data.fields.base import Array, Drawn, Fields
from maskvlm_jax.data.rows import Rows
from maskvlm_jax.data.sources.base import Source
from maskvlm_jax.runtime import host
from maskvlm_jax.runtime.errors import UserError

SMALL = 4_096  # bytes of a picture's array that is held in any case
READ_AHEAD = 64  # pictures


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """I pictures and T captions.

    Attributes:
        of_picture: the arrays of each picture as in a batch, (I, ...), among them `image` and `image_masked`.
        ids: I names.
        known: of each picture what its source knows, by key, but for pictures.
        image_hashes: (I,) int32, `batch.image_hash` of each.
        captions: T texts; text: the arrays of each as in a batch, (T, ...); image_of_caption: (T,) int.
        one_at_a_time: the modality that is not rebuilt is read whole, however it was read in training, so that models
            compare; False where positions are dropped, whose count must not change.
        broken: names of pictures that could not be decoded, or have no caption; they are left out.
        fingerprint: sha256 of the source.
        classes: names of the classes that the source numbers, see `sources.base.Source`.
    """

    of_picture: dict[str, Rows]
    ids: list[str]
    known: list[Mapping[str, Any]]
    image_hashes: np.ndarray
    captions: list[str]
    text: dict[str, np.ndarray]
    image_of_caption: np.ndarray
    one_at_a_time: bool
    broken: list[str]
    fingerprint: str
    classes: tuple[str, ...] = ()

    @property
    def images(self) -> Rows:
        """(I, Y, X, 3) uint8, squashed to the model's size."""
        return self.of_picture["image"]

    @property
    def image_masked(self) -> Rows:
        """(I, N) bool, drawn once from the evaluation's seed."""
        return self.of_picture["image_masked"]

    @property
    def first_captions(self) -> np.ndarray:
        """(I,) int: the first caption of every picture."""
        return np.unique(self.image_of_caption, return_index=True)[1]

    def first(self, count: int) -> "EvaluationSet":
        """The first `count` pictures and their captions."""
        texts = self.image_of_caption < count
        return dataclasses.replace(
            self,
            of_picture={name: rows.first(count) for name, rows in self.of_picture.items()},
            ids=self.ids[:count],
            known=self.known[:count],
            image_hashes=self.image_hashes[:count],
            captions=[caption for caption, kept in zip(self.captions, texts, strict=True) if kept],
            text={name: value[texts] for name, value in self.text.items()},
            image_of_caption=self.image_of_caption[texts],
        )

    def other_pictures(self) -> np.ndarray:
        """(I,) int: for every picture another one that shares neither picture nor first caption with it."""
        count, first = len(self.images), self.first_captions
        ids = self._pair_ids(np.arange(count), first)
        others = (np.arange(count) + count // 2) % count
        for _ in range(count):
            clash = np.any(ids == ids[others], axis=1)
            if not clash.any():
                break
            others = np.where(clash, (others + 1) % count, others)
        return others

    def _pair_ids(self, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        pairs = zip(self.image_hashes[images], texts, strict=True)
        return np.stack([batches.pair_id(image, self.captions[text]) for image, text in pairs])

    def batch(self, images: np.ndarray, texts: np.ndarray, valid: np.ndarray) -> batches.Batch:
        """A batch of pictures `images` with captions `texts`, which need not belong together."""
        return {
            **{name: rows[images] for name, rows in self.of_picture.items()},
            **{name: value[texts] for name, value in self.text.items()},
            "pair_id": self._pair_ids(images, texts),
            "example_valid": valid,
        }


def padded(ids: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """`ids` filled up to `size` with its first element, and which entries are real."""
    filled = np.concatenate([ids, np.repeat(ids[:1], size - len(ids))])
    return filled, np.arange(size) < len(ids)


class _Picture(NamedTuple):
    """A picture, its captions and the arrays of both; `captions` is empty if it cannot be used."""

    id: str
    captions: Sequence[str] = ()
    known: Mapping[str, Any] = {}
    hash: np.int32 | None = None
    arrays: Mapping[str, np.ndarray] = {}
    text: Sequence[Mapping[str, np.ndarray]] = ()


def _read_picture(
    source: Source,
    fields: Fields,
    index: int,
    *,
    image_size: int,
    masking_options: dict,
    seed: int,
    captions_per_image: int,
) -> _Picture:
    """Example `index`; arguments as of `load_evaluation`."""

    def prepare(image: bytes | np.ndarray) -> np.ndarray:
        return transforms.resize(decoding.decode(image, min_size=image_size), size=image_size)

    example = source[index]
    rng = np.random.Generator(np.random.Philox(key=[seed, index]))
    captions = example["captions"][: captions_per_image or None]
    try:
        drawn = Drawn(example, prepare(example["image"]), "", masking_options, prepare)
        arrays, text = _made(fields, drawn, captions, rng)
    except decoding.DecodeError:
        return _Picture(example["id"])
    known = {key: value for key, value in example.items() if not isinstance(value, bytes | np.ndarray)}
    return _Picture(example["id"], captions, known, batches.image_hash(example["image"]), arrays, text)


def _made(
    fields: Fields, drawn: Drawn, captions: Sequence[str], rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    """The arrays of a picture, and those of each of its captions."""
    arrays, text = {}, [{} for _ in captions]
    for group in fields:  # the own ones first: they draw the same however many more there are
        for field in (field for field in group if field.of == "picture"):
            arrays |= field.make(drawn, rng)
        for made, caption in zip(text, captions, strict=True):
            for field in (field for field in group if field.of == "caption"):
                made |= field.make(drawn._replace(caption=caption), rng)
    return arrays, text


def load_evaluation(
    source: Source,
    fields: Fields,
    *,
    limit: int,
    one_at_a_time: bool,
    memory: int,
    **options: Any,
) -> EvaluationSet:
    """Reads a split, with a thread a core.

    Args:
        fields: what is made of an example.
        limit: first pictures only; 0 = all.
        one_at_a_time: see `EvaluationSet`.
        memory: bytes of the pictures' arrays that are held at most; the others are read again when they are asked for.
        options: `image_size` in pixels; `masking_options`, `config.masking`; `seed` of the masks: picture i's are a
            function of (seed, i); `captions_per_image`: first captions only, 0 = all.

    Raises:
        UserError: no picture can be used, or a field lacks what it reads.
    """
    read = partial(_read_picture, source, fields, **options)
    count = min(limit, len(source)) if limit else len(source)
    of_pictures = (field for field in itertools.chain(*fields) if field.of == "picture")
    of_picture = {name: array for field in of_pictures for name, array in field.arrays().items()}
    held, used, places, broken = _Held(of_picture, count, memory), [], [], []
    for place, picture in enumerate(_read_ahead(read, range(count))):
        if picture.captions:
            held.add(picture.arrays)
            used.append(picture._replace(arrays={}))
            places.append(place)
        else:
            broken.append(picture.id)
    if not used:
        raise UserError(f"no picture of the evaluation split can be used; the first is {broken[0]}")
    text = [made for one in used for made in one.text]
    return EvaluationSet(
        of_picture=held.rows(lambda row, name: read(places[row]).arrays[name]),
        ids=[one.id for one in used],
        known=[one.known for one in used],
        image_hashes=np.array([one.hash for one in used], np.int32),
        captions=[caption for one in used for caption in one.captions],
        text={name: np.stack([made[name] for made in text]) for name in text[0]},
        image_of_caption=np.repeat(np.arange(len(used)), [len(one.captions) for one in used]),
        one_at_a_time=one_at_a_time,
        broken=broken,
        fingerprint=source.fingerprint,
        classes=tuple(getattr(source, "classes", ())),
    )


def _read_ahead(read: Callable[[int], _Picture], indices: Iterable[int]) -> Iterator[_Picture]:
    """What `read` gives, in order, read by a thread a core a little ahead."""
    indices, under_way = iter(indices), deque()
    with ThreadPoolExecutor(host.cores()) as pool:
        under_way.extend(pool.submit(read, index) for index in itertools.islice(indices, READ_AHEAD))
        while under_way:
            yield under_way.popleft().result()
            under_way.extend(pool.submit(read, index) for index in itertools.islice(indices, 1))


class _Held:
    """Arrays of the first pictures, as many as `memory` bytes hold of `count`; small arrays of all of them."""

    def __init__(self, arrays: Mapping[str, Array], count: int, memory: int):
        sizes = {name: int(np.prod(array.shape)) * np.dtype(array.dtype).itemsize for name, array in arrays.items()}
        large = sum(size for size in sizes.values() if size > SMALL)
        fitting = min(count, memory // large) if large else count
        self._arrays = {
            name: np.empty((fitting if sizes[name] > SMALL else count, *array.shape), array.dtype)
            for name, array in arrays.items()
        }
        self._count = 0

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """The arrays of the next picture."""
        for name, held in self._arrays.items():
            if self._count < len(held):
                held[self._count] = arrays[name]
        self._count += 1

    def rows(self, make: Callable[[int, str], np.ndarray]) -> dict[str, Rows]:
        """All arrays; `make` gives the row of a name that is not held."""
        return {
            name: Rows(held[: self._count], self._count, partial(make, name=name))
            for name, held in self._arrays.items()
        }
