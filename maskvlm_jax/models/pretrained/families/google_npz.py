"""ViT in Google's .npz files, as vision_transformer writes them (AugReg, Steiner et al. 2021, arXiv 2106.10270) and as
big_vision does, whose files may hold a text tower beside it and all layers of a kind in one array."""

import re
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from maskvlm_jax.models.pretrained.families.base import Arrays, Names, blocks
from maskvlm_jax.models.pretrained.families.pictures import BLANK, ImageFamily
from maskvlm_jax.models.pretrained.files import Stored


class Layout(NamedTuple):
    """How one of the two calls what a block is made of, and the positions; flax numbers modules as they are called."""

    attention: str
    norm2: str
    feed_forward: str
    position: str
    activation: str


_VISION_TRANSFORMER = Layout(
    "MultiHeadDotProductAttention_1",
    "LayerNorm_2",
    "MlpBlock_3",
    "Transformer/posembed_input/pos_embedding",
    "gelu",  # flax's was the approximation by tanh; timm and transformers read them as erf
)
_BIG_VISION = Layout("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0", "pos_embedding", "gelu_tanh")
_PREFIX = re.compile(r"(params/)?(img/)?")  # of a file of big_vision; a model of two towers has the second
_ONE_ARRAY = "Transformer/encoderblock/"  # of all layers, the first axis


class Family(ImageFamily):
    mean = std = (0.5, 0.5, 0.5)

    @classmethod
    def reads(cls, stored: Stored) -> bool:
        return stored.files[0].suffix == ".npz" and any("Transformer/encoderblock" in name for name in stored.arrays)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {_PREFIX.sub("", name, count=1): value.shape for name, value in self.stored.arrays.items()}

    @property
    def _layout(self) -> Layout:
        return _VISION_TRANSFORMER if _VISION_TRANSFORMER.position in self._shapes else _BIG_VISION

    @property
    def _block(self) -> str:
        """What stands before the names of a block's parts."""
        stacked = any(name.startswith(_ONE_ARRAY) for name in self._shapes)
        return _ONE_ARRAY if stacked else "Transformer/encoderblock_{}/"

    def values(self) -> dict[str, Any]:
        first = self._block.format(0)
        query = self._shapes[f"{first}{self._layout.attention}/query/kernel"]
        patch, _, _, width = self._shapes["embedding/kernel"]
        counted = sum(name.endswith("/LayerNorm_0/scale") for name in self._shapes if name.startswith("Transformer/"))
        return BLANK | {
            "patch": patch,
            "depth": query[0] if self._block == _ONE_ARRAY else counted,
            "width": width,
            "heads": query[-2],
            "mlp_ratio": self.ratio(self._shapes[f"{first}{self._layout.feed_forward}/Dense_0/kernel"][-1], width),
            "activation": self._layout.activation,
            "eps": 1e-6,
            "norm": "pre",
            "class_token": "cls" in self._shapes,
        }

    def names(self) -> Names:
        arrays = {"position": self._layout.position} | ({"class_token": "cls"} if "cls" in self._shapes else {})
        ignored = (r"head/", r"pre_logits/", r"MAPHead_0/", r"txt/", r"[tb]$", r"opt/")
        return Names({}, {}, arrays, prefixes=("params/img/", "params/", "img/"), ignored=ignored)

    def parameters(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """Kernels are (in, out) already, those of attention cut into heads."""
        values, layout, found = self.values(), self._layout, {}
        layers, width = values["depth"], values["width"]
        dense = {f"attention/{name}": f"{layout.attention}/{name}" for name in ("query", "key", "value", "out")}
        dense |= {
            "feed_forward/up": f"{layout.feed_forward}/Dense_0",
            "feed_forward/down": f"{layout.feed_forward}/Dense_1",
        }
        for ours, theirs in blocks(self._block, dense).items():
            kernel, bias = (arrays.take(f"{theirs}/{part}", layers) for part in ("kernel", "bias"))
            rows = width if not ours.endswith("down") else kernel.shape[1]
            found[f"{ours}/kernel"] = kernel.reshape(layers, rows, -1)
            found[f"{ours}/bias"] = bias.reshape(layers, -1)
        norms = blocks(self._block, {"norm1": "LayerNorm_0", "norm2": layout.norm2})
        for ours, theirs in (norms | {"norm": "Transformer/encoder_norm"}).items():
            found |= {f"{ours}/{part}": arrays.take(f"{theirs}/{part}", layers) for part in ("scale", "bias")}
        kernel = arrays.take("embedding/kernel")
        found["patch_embedding/kernel"] = kernel.reshape(-1, kernel.shape[-1])
        found["patch_embedding/bias"] = arrays.take("embedding/bias")
        found |= super(ImageFamily, self).parameters(arrays)
        if layout is _BIG_VISION and values["class_token"]:  # which it puts before the patches when these have theirs
            found["position"] = np.concatenate([np.zeros((1, width), np.float32), found["position"].reshape(-1, width)])
        return self.tokens_and_pixels(found)
