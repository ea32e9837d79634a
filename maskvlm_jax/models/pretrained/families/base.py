"""What a family of encoders is, and how a new one is written.

A family is one file: in this folder, where it is found by what `reads` says, or anywhere else, named by
`config.init.image_family` or `text_family`. It has a class `Family`: a table of names, the values of
`config.model.image` or `config.model.text` that its config.json means, and folds: exact changes of weights for what our
models do not have, such as layer scale.

Every array of a file is read, or on the list of what is ignored by name, or an error.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from maskvlm_jax.models.pretrained.files import Stored
from maskvlm_jax.runtime.errors import UserError, few

BLOCK = "blocks/block"  # where the parameters of all layers are, stacked
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


class Names(NamedTuple):
    """Our path -> their name; {} stands for the layer's number.

    dense: layers with a weight and a bias, (out, in) or of a convolution; norms: weight and bias; arrays: single ones.
    prefixes: that may stand before every name, as those of a model with a head do. ignored: regular expressions of
    names that are not read. without_bias: paths of dense layers that have none; theirs are zeros.
    """

    dense: Mapping[str, str]
    norms: Mapping[str, str]
    arrays: Mapping[str, str]
    prefixes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    without_bias: tuple[str, ...] = ()


class Arrays:
    """The arrays of a file, and which of them were taken."""

    def __init__(self, arrays: Mapping[str, np.ndarray], names: Names, where: str):
        self._arrays, self._taken, self._where = {}, set(), where
        for name, value in _stripped(arrays, names.prefixes):
            if name in self._arrays:
                raise UserError(f"{where} holds {name} twice, with and without a prefix; keep one of the two")
            self._arrays[name] = value
        self._ignored = re.compile("|".join(names.ignored) or "(?!)")

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def take(self, name: str, layers: int = 0) -> np.ndarray:
        """An array, or with {} in its name those of all layers, stacked.

        Raises:
            UserError: it is not there, or not of the shape that it has in other layers.
        """
        if "{}" in name:
            if not layers:
                raise UserError(f"{self._where} has no layers")
            found = [self.take(name.format(layer)) for layer in range(layers)]
            if len({one.shape for one in found}) > 1:
                raise UserError(f"{self._where}: {name.format(0)} has another shape than in other layers")
            return np.stack(found)
        if name not in self._arrays:
            raise UserError(f"{self._where} has no {name}; is it whole, and of the kind that its config.json says?")
        self._taken.add(name)
        if self._arrays[name].dtype != np.float32:
            kind = self._arrays[name].dtype
            raise UserError(
                f"{self._where}: {name} holds {kind}, no floating point; a quantised encoder cannot be read"
            )
        return self._arrays[name]

    def ignored(self) -> list[str]:
        """Names that were not taken and are known not to be needed."""
        return sorted(name for name in self._left() if self._ignored.match(name))

    def check_nothing_is_left(self) -> None:
        """Raises UserError: an array that was neither taken nor is ignored by name."""
        if left := sorted(name for name in self._left() if not self._ignored.match(name)):
            raise UserError(
                f"{self._where} has what this family's models have not: {few(left, 3)}; is it another kind?"
            )

    def _left(self) -> Iterator[str]:
        return (name for name in self._arrays if name not in self._taken)


class Family:
    """One family of encoders, of one file or folder.

    Attributes:
        modality: "image" or "text".
        model_types: of the config.json of its folders.
        mean, std: that its pictures were normalised by, where the folder does not say.
        antialias: whether its positions are resized with antialiasing, as its own code does it.
    """

    modality: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]] = ()
    mean: ClassVar[tuple[float, ...]] = (0.485, 0.456, 0.406)
    std: ClassVar[tuple[float, ...]] = (0.229, 0.224, 0.225)
    antialias: ClassVar[bool] = False

    def __init__(self, stored: Stored):
        self.stored, self.config, self.folds = stored, stored.config, []

    @classmethod
    def reads(cls, stored: Stored) -> bool:
        """Whether it is a model of this family."""
        return stored.config.get("model_type") in cls.model_types

    def names(self) -> Names:
        """The table of names."""
        raise NotImplementedError

    def values(self) -> dict[str, Any]:
        """Values of `config.model.image` or `config.model.text`.

        Raises:
            UserError: something that our models cannot be.
        """
        raise NotImplementedError

    def parameters(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """Our parameters by their paths in the encoder; takes all that is needed of the arrays."""
        names, layers, found = self.names(), self.values()["depth"], {}
        for ours, theirs in names.dense.items():
            found[f"{ours}/kernel"] = kernel(arrays.take(f"{theirs}.weight", layers), stacked="{}" in theirs)
            if ours in names.without_bias:
                found[f"{ours}/bias"] = np.zeros_like(found[f"{ours}/kernel"][..., 0, :])
            else:
                found[f"{ours}/bias"] = arrays.take(f"{theirs}.bias", layers)
        for ours, theirs in names.norms.items():
            found[f"{ours}/scale"] = arrays.take(f"{theirs}.weight", layers)
            found[f"{ours}/bias"] = arrays.take(f"{theirs}.bias", layers)
        return found | {ours: arrays.take(theirs, layers) for ours, theirs in names.arrays.items()}

    def activation(self, name: str) -> str:
        """Our name of an activation.

        Raises:
            UserError: we have no such activation.
        """
        if name not in ACTIVATIONS:
            raise UserError(f"{self.stored.name} has the activation {name}; there are {', '.join(sorted(ACTIVATIONS))}")
        return ACTIVATIONS[name]

    def ratio(self, hidden: int, width: int) -> int:
        """`mlp_ratio`.

        Raises:
            UserError: it is no whole number.
        """
        if width < 1 or hidden < 1 or hidden % width:
            raise UserError(f"{self.stored.name} has a hidden layer of {hidden}, no multiple of its width {width}")
        return hidden // width


def kernel(weight: np.ndarray, *, stacked: bool) -> np.ndarray:
    """The kernel (in, out) of a dense layer, of all layers where they are stacked; of a convolution over patches
    (p p 3, D), rows of a patch in the order (row, column, channel) of `models.vision.patchify`."""
    if not stacked and weight.ndim == 4:
        return np.transpose(weight, (2, 3, 1, 0)).reshape(-1, weight.shape[0])
    return np.swapaxes(weight, -1, -2)


def fold_scales(found: dict[str, np.ndarray], scales: Mapping[str, np.ndarray]) -> None:
    """Makes layer scale a part of the layers before it.

    Args:
        scales: part of a block -> its factors in every layer, (layers, D).
    """
    for part, scale_AD in scales.items():
        path = f"{BLOCK}/{part}"
        found[f"{path}/kernel"] = found[f"{path}/kernel"] * scale_AD[:, None]
        found[f"{path}/bias"] = found[f"{path}/bias"] * scale_AD


def without_bias(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Dense layers of attention that have no bias where `qkv_bias` is false."""
    return (
        () if config.get("qkv_bias", True) else tuple(f"{BLOCK}/attention/{name}" for name in ("query", "key", "value"))
    )


def blocks(template: str, names: Mapping[str, str]) -> dict[str, str]:
    """The rows of a table for parts of a block: our part -> {} layer and their part."""
    return {f"{BLOCK}/{ours}": template + theirs for ours, theirs in names.items()}


def _stripped(arrays: Mapping[str, np.ndarray], prefixes: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    for name, value in arrays.items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        # Files of old releases name the parts of a norm otherwise.
        short = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name.removeprefix(prefix))
        yield re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", short), value
