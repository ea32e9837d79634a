"""What the encoders make of pictures and captions, before any projection."""

from collections.abc import Iterable

import numpy as np
from ml_collections import ConfigDict

from maskvlm_jax.serving import functions
from maskvlm_jax.serving.pictures import Picture
from maskvlm_jax.serving.runner import Arrays, Runner, many_texts
from maskvlm_jax.training import build

# How the sequence of a picture becomes a vector, if it does -> the compiled function.
_FUNCTIONS = {"none": functions.image_tokens, "first": functions.first_token, "mean": functions.mean_of_patches}


def of(
    runner: Runner,
    config: ConfigDict,
    images: Picture | Iterable[Picture] | None,
    texts: str | Iterable[str] | None,
    pooling: str,
) -> Arrays:
    """See `Model.features`."""
    model, found = config.model, {}
    if pooling not in _FUNCTIONS:
        raise ValueError(f"pooling is {pooling!r}; give {', '.join(_FUNCTIONS)}")
    if pooling == "first" and not model.image.class_token:
        raise ValueError(f"{config.name} has no class token; give pooling mean")
    if texts is not None and model.text.kind == "none":
        raise ValueError(f"{config.name} reads no text: it was trained on pictures alone")
    if images is not None:
        shape, _ = build.feature_shape(config)
        shape = shape if pooling == "none" else shape[1:]
        found["image"] = runner.of_images(images, _FUNCTIONS[pooling], shape)
    if texts is not None:
        many, single = many_texts(texts)
        length = model.text.max_length
        rows = runner.of_texts(many, functions.text_tokens, (length, model.text.width))
        valid = np.array([runner.tokenizer.encode(text, length)[2] for text in many], bool).reshape(-1, length)
        found |= {"text": rows[0], "text_valid": valid[0]} if single else {"text": rows, "text_valid": valid}
    return found
