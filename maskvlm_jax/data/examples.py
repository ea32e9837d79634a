"""The examples that a config describes: their fields, and the arrays of a batch of them."""

import numpy as np
from ml_collections import ConfigDict

from maskvlm_jax.data import batch as batches
from maskvlm_jax.data.fields import hidden_patches, picture, words
from maskvlm_jax.data.fields.base import Array, Field, Fields, Sizes
from maskvlm_jax.data.sources.base import Source
from maskvlm_jax.data.sources.training_set import TrainingSet
from maskvlm_jax.data.tokenizer import Tokenizer
from maskvlm_jax.data.training_stream import MakeExample
from maskvlm_jax.runtime import plugins
from maskvlm_jax.runtime.errors import UserError


def fields_of(config: ConfigDict, tokenizer: Tokenizer | None = None) -> Fields:
    """The fields of a config; without a tokenizer they tell their arrays, but cannot make them.

    Raises:
        UserError: there is no such field, or two make an array of one name.
    """
    sizes = Sizes(config.model.image.image_size, config.model.image.patch, config.model.text.max_length)
    fields = own_fields(sizes, tokenizer)
    taken = dict.fromkeys((*batches.Batch.__annotations__, *batches.HOST_KEYS))
    more = []
    for label, options in config.data.fields.to_dict().items():
        kind = _kind(options.pop("name"))
        try:
            more.append(kind(label, sizes, tokenizer, **options))
        except TypeError as error:
            raise UserError(f"data.fields.{label}: {error}") from error
        if more[-1].of not in ("picture", "caption"):
            raise UserError(f"data.fields.{label} is of {more[-1].of!r}; a field is of a picture or of a caption")
        for name in more[-1].arrays():
            if name in taken:
                raise UserError(f"data.fields.{label} makes an array {name!r}, which is there already; rename it")
            taken[name] = None
    return Fields(fields, tuple(more))


def resolve_fields(config: ConfigDict, source: TrainingSet) -> None:
    """Puts the values into `config.data.fields` that follow from what is trained on, see `Field.resolved`.

    Raises:
        UserError: there is no such field, or the data do not tell its values.
    """
    for block in config.data.fields.values():
        options = block.to_dict()
        resolved = _kind(options.pop("name")).resolved(options, source)
        block.update({key: value for key, value in resolved.items() if options.get(key) != value})


def _kind(name: str) -> type[Field]:
    return plugins.load("maskvlm_jax.data.fields", name, "Field", "field")


def own_fields(sizes: Sizes, tokenizer: Tokenizer | None = None) -> tuple[Field, ...]:
    """Picture, hidden patches and words."""
    kinds = {"image": picture, "image_masked": hidden_patches, "words": words}
    return tuple(kind.Field(label, sizes, tokenizer) for label, kind in kinds.items())


def batch_shapes(config: ConfigDict) -> dict[str, tuple[tuple[int, ...], type]]:
    """(shape, type) of each array of a batch as the device gets it, with captions of the full length."""
    own, more = fields_of(config)
    arrays = {name: array for field in (*own, *more) for name, array in field.arrays().items()}
    arrays |= {"pair_id": Array((2,), np.int32), "example_valid": Array((), bool)}
    return {name: ((config.batch_size, *shape), dtype) for name, (shape, dtype) in arrays.items()}


def make_example(config: ConfigDict, source: Source, tokenizer: Tokenizer) -> MakeExample:
    """The transformation from stream position to example."""
    return MakeExample(
        source,
        fields_of(config, tokenizer),
        image_size=config.model.image.image_size,
        augment=config.data.augment.to_dict(),
        masking_options=config.masking.to_dict(),
        modality_dropout=config.data.modality_dropout,
    )
