"""Sets of tensorflow-datasets for tests."""

import io
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds


def make_set(folder: Path, features: dict, examples: dict[str, list[dict]]) -> Path:
    """Prepares a set; pictures are given as encoded bytes, so that TensorFlow is not needed to encode them."""

    class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, _) -> dict:
            return {split: self._generate_examples(split) for split in examples}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
            for number, example in enumerate(examples[split]):
                pictures = {key: io.BytesIO(value) for key, value in example.items() if isinstance(value, bytes)}
                yield number, example | pictures

    tfds.disable_progress_bar()
    builder = Toy(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)
