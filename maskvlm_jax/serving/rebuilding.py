"""Words and pictures that are filled in from the other modality."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from maskvlm_jax.data import masking, transforms
from maskvlm_jax.evaluators.figures import MASK_GREY, paste
from maskvlm_jax.objectives import masked_positions
from maskvlm_jax.serving import functions
from maskvlm_jax.serving.pictures import Picture
from maskvlm_jax.serving.runner import Arrays, Runner


def fill_masks(
    runner: Runner, config: ConfigDict, objective: Mapping[str, Any], image: Picture | None, text: str, k: int
) -> list[list[dict[str, Any]]]:
    """See `Model.fill_masks`; `objective` are the values of the one that predicts words."""
    dropping = ("drop", "left_out", "drop_in_fusion")
    drops = config.model.image.hidden in dropping and objective.get("other", "clean") == "masked"
    _check_sees_all(config, drops)
    length = config.model.text.max_length
    most = masked_positions.masked_token_capacity(length, config.masking.text_ratio)
    tokens, hidden, valid = runner.masked_tokens(text, most)
    pixels = runner.picture(image)
    log_1MV, ids_1M = runner.of_one(functions.word_log_probabilities, pixels, tokens, valid, text_masked=hidden)
    # Numbers behind those of the hidden tokens are padding, and may name one of them again.
    row = {int(place): log_1MV[0, i] for i, place in reversed(list(enumerate(ids_1M[0])))}
    return [
        [
            {"word": runner.tokenizer.token(i), "probability": float(np.exp(row[place][i]))}
            for i in np.argsort(-row[place], kind="stable")[:k]
        ]
        for place in np.flatnonzero(hidden)
    ]


def reconstruct(runner: Runner, config: ConfigDict, image: Picture, text: str, seed: int) -> Arrays:
    """See `Model.reconstruct`."""
    _check_sees_all(config, False)
    options, patch = config.masking, config.model.image.patch
    hidden = masking.sample_image_mask(
        np.random.default_rng(seed),
        config.model.image.image_size // patch,
        cell=options.image_cell,
        ratio=options.image_ratio,
    )
    pixels, arrays = runner.picture(image), runner.tokens([text])
    tokens, valid = arrays["tokens"][0], arrays["token_valid"][0]
    pred_1MF, ids_1M = runner.of_one(functions.pixels, pixels, tokens, valid, image_masked=hidden)
    rebuilt = transforms.denormalise(pred_1MF[0].reshape(-1, patch, patch, 3))
    grey = np.full_like(rebuilt, MASK_GREY)
    return {"image": paste(pixels, rebuilt, ids_1M[0]), "masked": paste(pixels, grey, ids_1M[0]), "hidden": hidden}


def _check_sees_all(config: ConfigDict, drops: bool) -> None:
    """Raises ValueError: the model reads masked views with as much hidden as in training, not with less."""
    if drops or config.model.fusion.kind == "autoencoder":
        raise ValueError(f"{config.name} leaves a fixed share of pictures and texts out; it cannot see all of one")
