"""Parameters by the names and in the shapes of a PyTorch module: an array a layer, dense layers as (out, in).

    vlm/fusion/text_stream/blocks/block/norm1/scale  (A, D)     fusion.text_stream.blocks.0.norm1.weight  (D,), ...
    objectives/matching/to_match/kernel              (D, 2)     objectives.matching.to_match.weight  (2, D)

Both ways move numbers only: what was written is read back bit by bit.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from maskvlm_jax.runtime.errors import UserError, few
from maskvlm_jax.runtime.parameters import map_by_path

_STACKED = re.compile(r"(^|/)(\w*blocks)/block/")  # parameters of all layers of a stack in one array
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "embedding.weight"}


def by_name(params: Any) -> dict[str, np.ndarray]:
    """Arrays of PyTorch from a nested dict of parameters.

    Raises:
        UserError: two parameters would have one name.
    """
    found: dict[str, np.ndarray] = {}

    def add(path: str, value: Any) -> None:
        value = np.asarray(value)
        for name, layer in _layers(path, value.shape):
            if name in found:
                raise UserError(f"two parameters would be {name}; rename one of the part that has {path}")
            found[name] = np.asarray(_turned(path, value if layer is None else value[layer]), order="C")

    map_by_path(add, params)
    return found


def of_names(arrays: Mapping[str, Any], abstract: Any, where: str, stack: Callable = np.stack) -> Any:
    """The nested dict of parameters that `abstract` describes, from arrays of PyTorch.

    Args:
        abstract: shapes of the parameters; there may be more arrays.
        where: for messages.
        stack: puts the layers of a stack together.

    Raises:
        UserError: an array is missing, or of another shape.
    """
    missing = [name for name in _all_names(abstract) if name not in arrays]
    if missing:
        raise UserError(f"{where} has no {few(missing, 3)}; is it an export of this model, and whole?")

    def value_of(path: str, own: Any) -> Any:
        layers = [_turned(path, arrays[name]) for name, _ in _layers(path, own.shape)]
        value = stack(layers) if _STACKED.search(path) else layers[0]
        if value.shape != own.shape:
            raise UserError(f"{where}: {path} is of {tuple(value.shape)}, the model's is of {own.shape}")
        return value

    return map_by_path(value_of, abstract)


def _all_names(abstract: Any) -> list[str]:
    names: list[str] = []
    map_by_path(lambda path, own: names.extend(name for name, _ in _layers(path, own.shape)), abstract)
    return names


def _layers(path: str, shape: tuple[int, ...]) -> Iterator[tuple[str, int | None]]:
    """The names of a parameter, and which layer of its array each is; None = the array is no stack."""
    *parents, leaf = path.removeprefix("vlm/").split("/")
    plain = "/".join([*parents, _LEAVES.get(leaf, leaf)])
    if not _STACKED.search(path):
        yield plain.replace("/", "."), None
        return
    for layer in range(shape[0]):
        yield _STACKED.sub(rf"\g<1>\g<2>/{layer}/", plain, count=1).replace("/", "."), layer


def _turned(path: str, value: Any) -> Any:
    """A kernel (in, out) as (out, in), and back."""
    return value.swapaxes(-1, -2) if path.endswith("/kernel") and value.ndim >= 2 else value
