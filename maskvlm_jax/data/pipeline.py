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

from maskvlm_jax import host
from maskvlm_jax.data import batch as batches
from maskvlm_jax.data import masking, transforms
from maskvlm_jax.data.mixing import Interleaving
from maskvlm_jax.data.sources import Mixture, Source
from maskvlm_jax.data.tokenizer import Tokenizer
from maskvlm_jax.errors import UserError

REPLACEMENT_TRIES = 100
# What `replaced` counts: 0 is not broken.
BROKEN = ("", "unreadable", "not a picture", "too large", "no caption")


class MakeExample(grain.transforms.RandomMap):
    """Example number -> arrays: decode, augment, tokenise, mask.

    Args:
        source: where pictures and captions come from.
        tokenizer: makes token ids.
        image_size, patch: pixels.
        max_length: tokens.
        augment: `config.data.augment`.
        masking_options: `config.masking`.
        modality_dropout: share of the examples that lose their picture or, as often, their words.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        *,
        image_size: int,
        patch: int,
        max_length: int,
        augment: dict,
        masking_options: dict,
        modality_dropout: float = 0.0,
    ):
        self._source, self._tokenizer = source, tokenizer
        self._image_size, self._grid, self._max_length = image_size, image_size // patch, max_length
        self._augment, self._masking, self._modality_dropout = augment, masking_options, modality_dropout

    def random_map(self, element: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """All arrays of one example; one caption of the picture's several is drawn, so one an epoch."""
        example, pixels, replaced = self._usable(int(element), rng)
        caption = example["captions"][int(rng.integers(len(example["captions"])))]
        image = self._augmented(pixels, caption, rng)
        options = masking.sample_ratios(rng, self._masking)
        image_masked = masking.sample_image_mask(
            rng, self._grid, cell=options["image_cell"], ratio=options["image_ratio"]
        )
        text = batches.text_fields(caption, self._tokenizer, rng, max_length=self._max_length, options=options)
        pair_id = batches.pair_id(batches.image_hash(example["image"]), caption)
        image, text, pair_id = self._dropped(image, text, pair_id, rng)
        return {
            "image": image,
            **text,
            "image_masked": image_masked,
            "pair_id": pair_id,
            "example_valid": np.bool_(True),
            "index": np.int64(element),
            "replaced": np.int8(replaced),
        }

    def _dropped(
        self, image: np.ndarray, text: dict, pair_id: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, dict, np.ndarray]:
        """Modality dropout (MLIM, arXiv 2109.12178): the mean colour for the picture, or a caption without a word.

        Examples that lost the same modality are equal in it: they become the same pair, and no negatives.
        """
        drawn = rng.random() if self._modality_dropout else 1.0
        if drawn < self._modality_dropout / 2:
            return batches.without_picture(image), text, np.array([0, pair_id[1]], np.int32)
        if drawn < self._modality_dropout:
            return image, batches.without_words(text), np.array([pair_id[0], 0], np.int32)
        return image, text, pair_id

    def _usable(self, element: int, rng: np.random.Generator) -> tuple[dict, np.ndarray, int]:
        """The example, a crop of its picture, and 0; where it is broken the next one that is not, and why.

        Which one stands in is the same on every machine; the number is a place in `BROKEN`.
        """
        replaced = 0
        for step in range(min(REPLACEMENT_TRIES, len(self._source))):
            example = self._source[(element + step) % len(self._source)]
            try:
                if not example["captions"]:
                    raise transforms.DecodeError("it has no caption", "no caption")
                return example, self._cropped(example["image"], rng), replaced
            except transforms.DecodeError as error:
                reason, replaced = f"{example['id']}: {error}", replaced or BROKEN.index(error.kind)
        raise UserError(f"no example can be used among {step + 1} in a row, the last is {reason}")

    def _cropped(self, image: bytes | np.ndarray, rng: np.random.Generator) -> np.ndarray:
        scale, size = tuple(self._augment["crop_scale"]), self._image_size
        if scale == (1.0, 1.0):
            return transforms.resize(transforms.decode(image, min_size=size), size=size)
        return transforms.random_resized_crop(image, rng, size=size, scale=scale)

    def _augmented(self, pixels: np.ndarray, caption: str, rng: np.random.Generator) -> np.ndarray:
        augment = self._augment
        if augment["flip"] and rng.random() < 0.5 and transforms.may_flip(caption):
            pixels = transforms.hflip(pixels)
        if augment["randaugment_ops"]:
            pixels = transforms.rand_augment(
                pixels, rng, num_ops=augment["randaugment_ops"], magnitude=augment["randaugment_magnitude"]
            )
        return pixels


def count_examples(source: Source, limit: int) -> int:
    """The number of examples trained on; `limit` as in `order`."""
    return sum(source.sizes) if isinstance(source, Mixture) else min(limit or len(source), len(source))


def check_batch_size(source: Source, batch_size: int, limit: int) -> int:
    """The number of examples trained on.

    Raises:
        UserError: a batch larger than that.
    """
    examples = count_examples(source, limit)
    if batch_size > examples:
        raise UserError(
            f"batch_size {batch_size} is larger than the data, {examples} examples; lower --config.batch_size"
        )
    return examples


def order(source: Source, *, seed: int, limit: int) -> grain.MapDataset:
    """Position in the stream -> number of the example, without end.

    Every epoch of a source, or of a part of a mixture, is a new random order of it.

    Args:
        limit: the first `limit` examples only, 0 = all; a mixture has a limit for each part.
    """

    def shuffled(examples: range, seed: int) -> grain.MapDataset:
        return grain.MapDataset.range(examples.start, examples.stop).seed(seed).shuffle().repeat(None)

    if isinstance(source, Mixture):
        parts = [shuffled(examples, seed + part) for part, examples in enumerate(source.ranges)]
        return grain.MapDataset.select_from_datasets(parts, Interleaving(source.weights, seed)).seed(seed)
    return shuffled(range(min(limit, len(source)) if limit else len(source)), seed)


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
    source: Source,
    make_example: MakeExample,
    *,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    limit: int,
    workers: int,
    threads: int,
    rows: Sequence[int] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Rows of the global batches start .. stop - 1.

    Args:
        batch_size: global.
        limit: see `order`.
        workers: processes that prepare batches; 0 = threads of this one.
        threads: that read ahead in each worker.
        rows: those of each batch that this process reads; all where None.

    Raises:
        UserError: a batch larger than the data.
    """
    check_batch_size(source, batch_size, limit)
    stream = order(source, seed=seed, limit=limit).random_map(make_example)
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
