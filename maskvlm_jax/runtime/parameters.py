"""Parameters by their place in the model, a path such as `vlm/image_encoder/blocks/block/norm1/scale`."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import jax

# Last parts of the paths of vectors that are learned as they are: biases, norms, tokens, positions, the temperature.
# They do not decay towards zero, and every device holds them whole.
VECTORS = ("bias", "scale", "position", "temperature", "image_type", "text_type")
VECTORS += ("class_token", "distillation_token", "register_tokens", "mask_token", "query")
VECTORS += ("image_centre", "text_centre")


def is_vector(path: str) -> bool:
    """Whether a parameter is one of `VECTORS`."""
    return path.rpartition("/")[2] in VECTORS


def is_frozen(path: str, freeze: Iterable[str]) -> bool:
    """Whether a parameter is to stay as it is: one of the regular expressions is found in its path.

    A mask token learns in any case: it is new in an encoder that was trained elsewhere.
    """
    return not path.endswith("mask_token") and any(re.search(pattern, path) for pattern in freeze)


def parameter_path(path: tuple) -> str:
    """The path of a parameter in a nested dict, joined with slashes."""
    return "/".join(str(key.key) for key in path)


def map_by_path(function: Callable[..., Any], params: Any, *others: Any) -> Any:
    """function(path, leaf, *others) over a nested dict of parameters, and others of the same structure."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(parameter_path(path), *leaves), params, *others
    )
