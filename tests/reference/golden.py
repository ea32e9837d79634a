"""Reads golden/*.npz and puts torch's parameters in the package's layout.

A dense kernel is (inputs, outputs), torch's weight its transpose; a patch embedding's is a convolution's weight with
pixels as (row, column, channel); blocks are stacked on a leading layer axis; query, key and value are apart.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "golden"
RENAMED = {"out_proj": "out", "linear1": "feed_forward/up", "linear2": "feed_forward/down"}


@dataclasses.dataclass(frozen=True)
class Golden:
    """Of one module: inputs, parameters by the package's paths, output, and gradients of sum(output * cotangent)."""

    inputs: dict[str, np.ndarray]
    params: dict[str, np.ndarray]
    output: np.ndarray
    cotangent: np.ndarray
    input_grads: dict[str, np.ndarray]
    param_grads: dict[str, np.ndarray]


def load(name: str) -> Golden:
    """The golden values of a module."""
    with np.load(FOLDER / f"{name}.npz") as stored:
        arrays = dict(stored)

    def group(prefix: str) -> dict[str, np.ndarray]:
        return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}

    return Golden(
        inputs=group("input/"),
        params=from_torch(group("param/")),
        output=arrays["output"],
        cotangent=arrays["cotangent"],
        input_grads=group("input_grad/"),
        param_grads=from_torch(group("param_grad/")),
    )


def from_torch(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Torch names and layouts to the package's paths and layouts."""
    crossed = any("multihead_attn" in name for name in state)
    renamed = RENAMED | {
        "self_attn": "self_attention" if crossed else "attention",
        "multihead_attn": "cross_attention",
    }
    result, layers = {}, {}
    for name, value in state.items():
        *path, leaf = name.split(".")
        for converted_leaf, converted in _leaves(path, leaf, value):
            if path[:1] == ["blocks"]:
                key = "/".join(["blocks", "block", *(renamed.get(part, part) for part in path[2:]), converted_leaf])
                layers.setdefault(key, {})[int(path[1])] = converted
            else:
                result["/".join([*(renamed.get(part, part) for part in path), converted_leaf]).lstrip("/")] = converted
    stacked = {key: np.stack([values[i] for i in range(len(values))]) for key, values in layers.items()}
    return _with_bare_embedding(result) | stacked


def _leaves(path: list[str], leaf: str, value: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The package's leaves of one of torch's."""
    if leaf.startswith("in_proj"):
        parts = zip(("query", "key", "value"), np.split(value, 3), strict=True)
        weight = leaf.endswith("weight")
        return [(f"{name}/kernel" if weight else f"{name}/bias", part.T if weight else part) for name, part in parts]
    if leaf != "weight" or path == ["embedding"]:
        return [(leaf, value)]
    if "norm" in path[-1]:
        return [("scale", value)]
    if value.ndim == 4:
        return [("kernel", value.transpose(2, 3, 1, 0).reshape(-1, len(value)))]
    return [("kernel", value.T)]


def _with_bare_embedding(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The embedding is a parameter, not a module with a weight."""
    return {path.removesuffix("/weight"): value for path, value in params.items()}
