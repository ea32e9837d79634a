"""What the words of a text tell of a picture: each is hidden in turn."""

from collections.abc import Callable

import numpy as np

from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.serving.pictures import Picture
from maskvlm_jax.serving.runner import Runner


def weights(
    runner: Runner, image: Picture, text: str, function: Callable, scale: Callable[[np.ndarray], np.ndarray]
) -> list[tuple[str, float]]:
    """See `Model.word_weights`.

    Args:
        function: a number for each pair of a batch; scale: what is compared, of these numbers.
    """
    words = text.split()
    if not words:
        raise ValueError("the text has no word; give at least one")
    arrays = runner.tokens([text])
    without = [" ".join([*words[:i], tokenizers.MASK, *words[i + 1 :]]) for i in range(len(words))]
    made = [runner.masked_tokens(one, most=len(one)) for one in without]
    tokens, _, valid = (np.stack(rows) for rows in zip(*made, strict=True))
    arrays = {
        "tokens": np.concatenate([arrays["tokens"], tokens]),
        "token_valid": np.concatenate([arrays["token_valid"], valid]),
    }
    values = scale(runner.beside(image, arrays, function))
    return [(word, float(values[0] - value)) for word, value in zip(words, values[1:], strict=True)]
