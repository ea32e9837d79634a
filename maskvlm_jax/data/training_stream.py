"""The training stream: global batch t is a function of (config, seed, t) alone.

Grain's MapDataset makes element i a pure function of (seed, i). The stream is therefore positioned by number: a
restarted run asks for batch t, it does not restore an iterator, and a process asks for the rows of it that its devices
hold.
"""

import sys
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from absl import flags

from maskvlm_jax.data import batch as batches
from maskvlm_jax.data import decoding, masking, transforms
from maskvlm_jax.data.fields.base import Drawn, Fields
from maskvlm_jax.data.mixing import Interleaving
from maskvlm_jax.data.rand_augment import rand_augment
from maskvlm_jax.data.sources.base import Source
from maskvlm_jax.data.sources.training_set import TrainingSet
from maskvlm_jax.runtime import host
from maskvlm_jax.runtime.errors import UserError

REPLACEMENT_TRIES = 100
# What `replaced` counts: 0 is not broken.
BROKEN = ("", "unreadable", "not a picture", "too large", "no caption")


class MakeExample(grain.transforms.RandomMap):
    """Example number -> arrays: decode, augment, and whatever its fields make of it.

    Args:
        source: where pictures and captions come from.
        fields: what is made of an example.
        image_size: pixels of a side.
        augment: `config.data.augment`.
        masking_options: `config.masking`.
        modality_dropout: share of the examples that lose their picture or, as often, their words.
    """

    def __init__(
        self,
        source: Source,
        fields: Fields,
        *,
        image_size: int,
        augment: dict,
        masking_options: dict,
        modality_dropout: float = 0.0,
    ):
        self._source, self._fields, self._image_size = source, fields, image_size
        self._augment, self._masking, self._modality_dropout = augment, masking_options, modality_dropout

    def random_map(self, element: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """All arrays of one example; one caption of the picture's several is drawn, so one an epoch.

        Where it is broken the next one that is not stands in, the same on every machine, and `replaced` says why: a
        place in `BROKEN`.
        """
        replaced = 0
        for step in range(min(REPLACEMENT_TRIES, len(self._source))):
            example = self._source[(int(element) + step) % len(self._source)]
            try:
                arrays = self._arrays(example, rng)
                return {**arrays, "index": np.int64(element), "replaced": np.int8(replaced)}
            except decoding.DecodeError as error:
                reason, replaced = f"{example['id']}: {error}", replaced or BROKEN.index(error.kind)
        raise UserError(f"no example can be used among {step + 1} in a row, the last is {reason}")

    def _arrays(self, example: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """What the fields make of an example.

        Raises:
            DecodeError: it has no caption, or a picture of it cannot be decoded.
        """
        if not example["captions"]:
            raise decoding.DecodeError("it has no caption", "no caption")
        pixels = self._cropped(example["image"], rng)
        caption = example["captions"][int(rng.integers(len(example["captions"])))]
        pixels = self._augmented(pixels, caption, rng)
        drawn = Drawn(
            example,
            pixels,
            caption,
            masking.sample_ratios(rng, self._masking),
            prepare=lambda image: self._augmented(self._cropped(image, rng), caption, rng),
        )
        arrays = {name: value for field in self._fields.own for name, value in field.make(drawn, rng).items()}
        arrays["pair_id"] = batches.pair_id(batches.image_hash(example["image"]), caption)
        lost = self._lost(example, rng)
        arrays |= _without(arrays, lost)
        for field in self._fields.more:
            arrays |= field.make(drawn._replace(lost=lost), rng)
        return arrays | {"example_valid": np.bool_(True)}

    def _lost(self, example: dict, rng: np.random.Generator) -> str:
        """The modality that dropout takes (MLIM, arXiv 2109.12178); an example that lacks something keeps the rest."""
        drawn = rng.random() if self._modality_dropout else 1.0
        if drawn >= self._modality_dropout or example.get("absent"):
            return ""
        return "picture" if drawn < self._modality_dropout / 2 else "caption"

    def _cropped(self, image: bytes | np.ndarray, rng: np.random.Generator) -> np.ndarray:
        scale, size = tuple(self._augment["crop_scale"]), self._image_size
        if scale == (1.0, 1.0):
            return transforms.resize(decoding.decode(image, min_size=size), size=size)
        return transforms.random_resized_crop(image, rng, size=size, scale=scale)

    def _augmented(self, pixels: np.ndarray, caption: str, rng: np.random.Generator) -> np.ndarray:
        augment = self._augment
        if augment["flip"] and rng.random() < 0.5 and transforms.may_flip(caption):
            pixels = transforms.hflip(pixels)
        if augment["randaugment_ops"]:
            pixels = rand_augment(
                pixels, rng, num_ops=augment["randaugment_ops"], magnitude=augment["randaugment_magnitude"]
            )
        return pixels


def _without(arrays: dict[str, np.ndarray], lost: str) -> dict[str, np.ndarray]:
    """What is read in the place of a lost modality: the mean colour for the picture, or no word.

    Examples that lost the same modality are equal in it: they become the same pair, and no negatives.
    """
    image, caption = arrays["pair_id"]
    if lost == "picture":
        return {"image": batches.without_picture(arrays["image"]), "pair_id": np.array([0, caption], np.int32)}
    if lost == "caption":
        return batches.without_words(arrays) | {"pair_id": np.array([image, 0], np.int32)}
    return {}


def count_examples(source: TrainingSet) -> int:
    """The number of examples trained on."""
    return sum(map(len, source.ranges))


def check_batch_size(source: TrainingSet, batch_size: int) -> int:
    """The number of examples trained on.

    Raises:
        UserError: a batch larger than that.
    """
    examples = count_examples(source)
    if batch_size > examples:
        raise UserError(
            f"batch_size {batch_size} is larger than the data, {examples} examples; lower --config.batch_size"
        )
    return examples


def order(source: TrainingSet, *, seed: int) -> grain.MapDataset:
    """Position in the stream -> number of the example, without end.

    Every epoch of a set, or of each set of a mixture, is a new random order of it; of a grouped set see `grouping`.
    """
    if grouping := getattr(source, "grouping", None):
        (examples,) = source.ranges
        whole = grain.MapDataset.range(examples.start, examples.stop)
        return grain.MapDataset.select_from_datasets([whole], grouping.seeded(seed)).seed(seed)

    def shuffled(examples: range, seed: int) -> grain.MapDataset:
        return grain.MapDataset.range(examples.start, examples.stop).seed(seed).shuffle().repeat(None)

    parts = [shuffled(examples, seed + part) for part, examples in enumerate(source.ranges)]
    if len(parts) == 1:
        return parts[0]
    return grain.MapDataset.select_from_datasets(parts, Interleaving(source.weights, seed)).seed(seed)


class _Rows(grain.transforms.DatasetSelectionMap):
    """Some rows of every batch, one behind the other."""

    def __init__(self, rows: tuple[int, ...], batch_size: int):
        self._rows, self._batch_size = rows, batch_size

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        batch, place = divmod(index, len(self._rows))
        return 0, batch * self._batch_size + self._rows[place]


def _enter_worker(number: int, count: int) -> None:
    host.end_with_parent()


def _without_interrupts(stream: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    """The same; Grain starts its workers as the first batch is asked for."""
    with host.interrupts_held():
        first = next(stream, None)
    if first is not None:
        yield first
        yield from stream


def train_stream(
    source: TrainingSet,
    make_example: MakeExample,
    *,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    workers: int,
    threads: int,
    rows: Sequence[int] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Rows of the global batches start .. stop - 1.

    Args:
        batch_size: global.
        workers: processes that prepare batches; 0 = threads of this one.
        threads: that read ahead in each worker.
        rows: those of each batch that this process reads; all if None.

    Raises:
        UserError: a batch larger than the data.
    """
    check_batch_size(source, batch_size)
    stream = order(source, seed=seed).random_map(make_example)
    if rows is not None and len(rows) < batch_size:
        stream = grain.MapDataset.select_from_datasets([stream], _Rows(tuple(rows), batch_size))
    stream = stream.batch(batch_size if rows is None else len(rows), drop_remainder=True)
    stream = stream[start:stop].to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4))
    if not workers:
        return iter(stream)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read flags of theirs, also without a command line
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    return _without_interrupts(iter(stream.mp_prefetch(processes, worker_init_fn=_enter_worker)))
