"""Classes that are known by their names alone, of a model with a contrastive space or with a matching head."""

from collections.abc import Iterable, Sequence

import numpy as np
from tqdm import tqdm

from maskvlm_jax.evaluators import prompts
from maskvlm_jax.serving import functions, pictures
from maskvlm_jax.serving.pictures import Picture
from maskvlm_jax.serving.runner import Runner


def checked_prompts(labels: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every name in every template, see `prompts.prompts`.

    Raises:
        ValueError: one of them is no list or empty, or a template has no place for the name.
    """
    for name, given in (("labels", labels), ("templates", templates)):
        if isinstance(given, str) or not given:
            raise ValueError(f"{name} is {given!r}; give a list of at least one")
    if wrong := [template for template in templates if not prompts.is_template(template)]:
        raise ValueError(f"the template {wrong[0]!r} must have {{}} once, for the name of the class")
    return prompts.prompts(labels, templates)


def matched(
    runner: Runner, images: Picture | Iterable[Picture], texts: Sequence[str], classes: int, *, progress: bool = False
) -> np.ndarray:
    """(n, c) of pictures, (c,) of one: the mean log-odds of matching with the prompts of each class."""
    many, single = pictures.many(images)
    arrays = runner.tokens(texts)
    shown = tqdm(many, disable=not progress, leave=False)
    odds = np.array([runner.beside(image, arrays, functions.log_odds) for image in shown])
    odds = odds.reshape(len(many), classes, -1).mean(axis=2) if many else np.zeros((0, classes), np.float32)
    return odds[0] if single else odds
