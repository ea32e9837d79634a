"""What the encoders make of pictures and captions, before any projection."""

from collections.abc import Iterable

import numpy as np

from maskvlm_jax.serving import functions
from maskvlm_jax.serving.pictures import Picture
from maskvlm_jax.serving.runner import Arrays, Runner, many_texts


def of(
    runner: Runner,
    images: Picture | Iterable[Picture] | None,
    texts: str | Iterable[str] | None,
    image_shape: tuple[int, ...],
    text_shape: tuple[int, int],
) -> Arrays:
    """See `Model.features`; the shapes are those of one sequence."""
    found = {}
    if images is not None:
        found["image"] = runner.of_images(images, functions.image_tokens, image_shape)
    if texts is not None:
        many, single = many_texts(texts)
        rows, length = runner.of_texts(many, functions.text_tokens, text_shape), text_shape[0]
        valid = np.array([runner.tokenizer.encode(text, length)[2] for text in many], bool).reshape(-1, length)
        found |= {"text": rows[0], "text_valid": valid[0]} if single else {"text": rows, "text_valid": valid}
    return found
