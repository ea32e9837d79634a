"""ViT in Google's .npz files: AugReg's (Steiner et al. 2021, arXiv 2106.10270), as vision_transformer writes them."""

from typing import Any

import numpy as np

from maskvlm_jax.weights.families.base import Arrays, Names, blocks
from maskvlm_jax.weights.families.pictures import BLANK, ImageFamily
from maskvlm_jax.weights.files import Stored

LAYER = "Transformer/encoderblock_{}/"
PARTS = {
    "attention/query": "MultiHeadDotProductAttention_1/query",
    "attention/key": "MultiHeadDotProductAttention_1/key",
    "attention/value": "MultiHeadDotProductAttention_1/value",
    "attention/out": "MultiHeadDotProductAttention_1/out",
    "feed_forward/up": "MlpBlock_3/Dense_0",
    "feed_forward/down": "MlpBlock_3/Dense_1",
}
NORMS = blocks(LAYER, {"norm1": "LayerNorm_0", "norm2": "LayerNorm_2"}) | {"norm": "Transformer/encoder_norm"}


class Family(ImageFamily):
    mean = std = (0.5, 0.5, 0.5)

    @classmethod
    def reads(cls, stored: Stored) -> bool:
        return stored.files[0].suffix == ".npz" and "Transformer/posembed_input/pos_embedding" in stored.arrays

    @property
    def _arrays(self) -> dict[str, np.ndarray]:
        return self.stored.arrays

    def values(self) -> dict[str, Any]:
        patch, _, _, width = self._arrays["embedding/kernel"].shape
        hidden = self._arrays[f"{LAYER.format(0)}MlpBlock_3/Dense_0/kernel"].shape[1]
        return BLANK | {
            "patch": patch,
            "depth": sum(name.endswith("LayerNorm_0/scale") for name in self._arrays),
            "width": width,
            "heads": self._arrays[f"{LAYER.format(0)}MultiHeadDotProductAttention_1/query/kernel"].shape[1],
            "mlp_ratio": self.ratio(hidden, width),
            "activation": "gelu",  # flax's was the approximation by tanh; timm and transformers read them as erf
            "eps": 1e-6,
            "norm": "pre",
        }

    def names(self) -> Names:
        arrays = {"class_token": "cls", "position": "Transformer/posembed_input/pos_embedding"}
        return Names({}, {}, arrays, ignored=(r"head/", r"pre_logits/"))

    def parameters(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """Kernels are (in, out) already, those of attention cut into heads."""
        layers, found = self.values()["depth"], {}
        for ours, theirs in blocks(LAYER, PARTS).items():
            width = arrays.take(f"{LAYER}LayerNorm_0/scale", layers).shape[1]
            kernel, bias = (arrays.take(f"{theirs}/{part}", layers) for part in ("kernel", "bias"))
            rows = width if not ours.endswith("down") else kernel.shape[1]
            found[f"{ours}/kernel"] = kernel.reshape(layers, rows, -1)
            found[f"{ours}/bias"] = bias.reshape(layers, -1)
        for ours, theirs in NORMS.items():
            found |= {f"{ours}/{part}": arrays.take(f"{theirs}/{part}", layers) for part in ("scale", "bias")}
        kernel = arrays.take("embedding/kernel")
        found["patch_embedding/kernel"] = kernel.reshape(-1, kernel.shape[-1])
        found["patch_embedding/bias"] = arrays.take("embedding/bias")
        return self.tokens_and_pixels(found | super(ImageFamily, self).parameters(arrays))
