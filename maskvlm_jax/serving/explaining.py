"""Which parts of a picture make it fit a text."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from maskvlm_jax.evaluators import heat as heats
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.serving.pictures import Picture
from maskvlm_jax.serving.runner import Runner


def explain(
    runner: Runner, config: ConfigDict, objectives: Mapping[str, type], image: Picture, text: str, layer: int | None
) -> dict[str, Any]:
    """See `Model.explain`."""
    if not isinstance(text, str):
        raise TypeError(f"{type(text).__name__} is no text; give one")
    try:
        layers = heats.layers_of(config, objectives)
        number = layers.default if layer is None else layers.number(layer)
    except UserError as error:  # in Python, what cannot be asked of a model is a ValueError
        raise ValueError(str(error)) from error
    pixels, arrays = runner.picture(image), runner.tokens([text])
    found = runner.of_one(heats.heat_of(number), pixels, arrays["tokens"][0], arrays["token_valid"][0])
    score, text_N, word_LN = (array[0] for array in found)
    words, word_WN = heats.of_words(runner.tokenizer, text, word_LN)
    size = pixels.shape[:2]
    return {
        "score": float(score),
        "words": words,
        "grid": heats.grid(text_N),
        "heat": heats.resized(text_N, *size),
        "word_grid": heats.grid(word_WN),
        "word_heat": heats.resized(word_WN, *size),
    }
