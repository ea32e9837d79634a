"""What a field of an example is, and how a new kind of field is written.

An example becomes arrays by its fields: the picture, the hidden patches, the words. A batch's arrays, an evaluation
set's and the shapes that a step is compiled for all come from them. More fields are named in a config, label by label,
`data.fields.<label> = {name, ...}`: a file of this folder, or the path of any other. The file has a class

    class Field(base.Field):
        def __init__(self, label: str, sizes: Sizes, tokenizer: Tokenizer | None, **options)

An objective that reads the arrays names the label in its `Needs.fields`. `label` is a short example.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from maskvlm_jax.data.sources.training_set import TrainingSet


class Array(NamedTuple):
    """Shape and type of an array, of one example."""

    shape: tuple[int, ...]
    dtype: type


class Sizes(NamedTuple):
    """What the model reads: pixels of a picture's side and of a patch's, tokens of a caption."""

    image_size: int
    patch: int
    max_length: int


class Drawn(NamedTuple):
    """An example of the stream or of an evaluation set, before arrays are made of it.

    example: what the source gives: "id", "image", "captions", and all else that it knows.
    pixels: its picture at the model's size, augmented in training; (Y, X, 3) uint8.
    caption: that which is read with it.
    masking: `config.masking`, with the ratios of this example.
    prepare: makes of another encoded picture what was made of this one's; in training it draws a crop and changes of
        its own.
    lost: "picture" or "caption", which modality dropout takes; it takes all pictures or all texts of an example.

    What is lost is here all the same, and so are the stand-ins for what the source says is absent.
    """

    example: dict[str, Any]
    pixels: np.ndarray
    caption: str
    masking: dict[str, Any]
    prepare: Callable[[bytes | np.ndarray], np.ndarray]
    lost: str = ""

    def lacks(self, key: str, modality: str) -> bool:
        """Whether there is nothing to be read under a key of the example: it is absent, or its modality is lost."""
        return modality == self.lost or key in self.example.get("absent", ())


class Field:
    """Arrays that are made of one thing that is known of an example.

    Attributes:
        of: "picture" or "caption": whose it is. Evaluation reads each picture once, and each of its captions.
    """

    of: ClassVar[str] = "picture"

    @classmethod
    def resolved(cls, options: Mapping[str, Any], source: TrainingSet) -> dict[str, Any]:
        """The options with the values of those that were left open and follow from what a run trains on.

        Called before a run's config is written, which so holds them for all that reads it later: a run that goes on,
        an evaluation elsewhere, an export. The same data must give the same values.
        """
        return dict(options)

    def arrays(self) -> dict[str, Array]:
        """The arrays that `make` makes, by their names in the batch."""
        raise NotImplementedError

    def make(self, drawn: Drawn, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The arrays of one example. Every random number is drawn from `rng`."""
        raise NotImplementedError


class Fields(NamedTuple):
    """What is made of every example.

    own: picture, hidden patches and words, which every model reads.
    more: those of `config.data.fields`. They draw their random numbers behind the others, which so stay the same.
    """

    own: tuple[Field, ...]
    more: tuple[Field, ...] = ()
