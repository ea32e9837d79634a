"""Evaluation sets: every caption of every decodable picture, in order, without augmentation."""

import dataclasses

import numpy as np

from maskvlm_jax.data import batch as batches
from maskvlm_jax.data import masking, transforms
from maskvlm_jax.data.sources import Source
from maskvlm_jax.data.tokenizer import Tokenizer
from maskvlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """I pictures and T captions.

    Attributes:
        images: (I, Y, X, 3) uint8, squashed to the model's size.
        ids: I names.
        image_hashes: (I,) int32, `batch.image_hash` of each.
        captions: T texts; text: arrays (T, L) as in a batch; image_of_caption: (T,) int.
        image_masked: (I, N) bool, drawn once from the evaluation's seed.
        one_at_a_time: the modality that is not rebuilt is read whole, however it was read in training, so that models
            compare; False where positions are dropped, whose count must not change.
        broken: names of pictures that could not be decoded, or have no caption; they are left out.
        fingerprint: sha256 of the source.
    """

    images: np.ndarray
    ids: list[str]
    image_hashes: np.ndarray
    captions: list[str]
    text: dict[str, np.ndarray]
    image_of_caption: np.ndarray
    image_masked: np.ndarray
    one_at_a_time: bool
    broken: list[str]
    fingerprint: str

    @property
    def first_captions(self) -> np.ndarray:
        """(I,) int: the first caption of every picture."""
        return np.unique(self.image_of_caption, return_index=True)[1]

    def first(self, count: int) -> "EvaluationSet":
        """The first `count` pictures and their captions."""
        texts = self.image_of_caption < count
        return dataclasses.replace(
            self,
            images=self.images[:count],
            ids=self.ids[:count],
            image_hashes=self.image_hashes[:count],
            captions=[caption for caption, kept in zip(self.captions, texts, strict=True) if kept],
            text={name: value[texts] for name, value in self.text.items()},
            image_of_caption=self.image_of_caption[texts],
            image_masked=self.image_masked[:count],
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
            "image": self.images[images],
            "image_masked": self.image_masked[images],
            **{name: value[texts] for name, value in self.text.items()},
            "pair_id": self._pair_ids(images, texts),
            "example_valid": valid,
        }


def padded(ids: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """`ids` filled up to `size` with its first element, and which entries are real."""
    filled = np.concatenate([ids, np.repeat(ids[:1], size - len(ids))])
    return filled, np.arange(size) < len(ids)


def load_evaluation(
    source: Source,
    tokenizer: Tokenizer,
    *,
    image_size: int,
    patch: int,
    max_length: int,
    masking_options: dict,
    seed: int,
    limit: int,
    captions_per_image: int,
    one_at_a_time: bool,
) -> EvaluationSet:
    """Reads a split whole.

    Args:
        seed: of the masks; picture i's are a function of (seed, i).
        limit: first pictures only; 0 = all.
        captions_per_image: first captions only; 0 = all.
        one_at_a_time: see `EvaluationSet`.
    """
    images, ids, hashes, captions, text, image_of_caption, image_masked, broken = [], [], [], [], [], [], [], []
    for index in range(min(limit, len(source)) if limit else len(source)):
        example = source[index]
        try:
            pixels = transforms.decode(example["image"], min_size=image_size)
        except transforms.DecodeError:
            broken.append(example["id"])
            continue
        if not example["captions"]:
            broken.append(example["id"])
            continue
        rng = np.random.Generator(np.random.Philox(key=[seed, index]))
        image_masked.append(
            masking.sample_image_mask(
                rng, image_size // patch, cell=masking_options["image_cell"], ratio=masking_options["image_ratio"]
            )
        )
        chosen = example["captions"][: captions_per_image or None]
        image_of_caption += [len(images)] * len(chosen)
        captions += chosen
        text += [
            batches.text_fields(caption, tokenizer, rng, max_length=max_length, options=masking_options)
            for caption in chosen
        ]
        images.append(transforms.resize(pixels, size=image_size))
        ids.append(example["id"])
        hashes.append(batches.image_hash(example["image"]))
    if not images:
        raise UserError(f"no picture of the evaluation split can be used; the first is {broken[0]}")
    return EvaluationSet(
        images=np.stack(images),
        ids=ids,
        image_hashes=np.array(hashes, np.int32),
        captions=captions,
        text={name: np.stack([fields[name] for fields in text]) for name in text[0]},
        image_of_caption=np.array(image_of_caption),
        image_masked=np.stack(image_masked),
        one_at_a_time=one_at_a_time,
        broken=broken,
        fingerprint=source.fingerprint,
    )
