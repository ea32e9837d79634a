"""DINOv2 of transformers, with and without registers; its layer scale becomes part of the layers before it."""

from typing import Any

import numpy as np

from maskvlm_jax.models.pretrained.families import vit
from maskvlm_jax.models.pretrained.families.base import Arrays, Names, blocks, fold_scales, without_bias
from maskvlm_jax.models.pretrained.families.pictures import ImageFamily
from maskvlm_jax.runtime.errors import UserError

FEED_FORWARD = blocks(vit.LAYER, {"feed_forward/up": "mlp.fc1", "feed_forward/down": "mlp.fc2"})
NORMS = blocks(vit.LAYER, {"norm1": "norm1", "norm2": "norm2"}) | {"norm": "layernorm"}
SCALES = {"attention/out": "layer_scale1", "feed_forward/down": "layer_scale2"}


class Family(ImageFamily):
    model_types = ("dinov2", "dinov2_with_registers")

    @property
    def antialias(self) -> bool:
        return bool(self._registers)

    @property
    def _registers(self) -> int:
        return self.config.get("num_register_tokens", 0) if self.config["model_type"] != "dinov2" else 0

    def values(self) -> dict[str, Any]:
        if self.config.get("use_swiglu_ffn"):
            raise UserError(
                f"{self.stored.name} has gated feed-forward layers (SwiGLU), which our model does not have; take the "
                "small, base or large one"
            )
        return super().values() | {"registers": self._registers}

    def names(self) -> Names:
        arrays = dict(vit.ARRAYS)
        if self.config.get("use_mask_token", True):
            arrays["mask_token"] = "embeddings.mask_token"
        if self._registers:
            arrays["register_tokens"] = "embeddings.register_tokens"
        return Names(
            vit.EMBEDDING_AND_ATTENTION | FEED_FORWARD,
            NORMS,
            arrays,
            prefixes=("dinov2.", "dinov2_with_registers."),
            ignored=(r"classifier\.",),
            without_bias=without_bias(self.config),
        )

    def parameters(self, arrays: Arrays) -> dict[str, np.ndarray]:
        found, layers = super().parameters(arrays), self.values()["depth"]
        names = {part: f"{vit.LAYER}{theirs}.lambda1" for part, theirs in SCALES.items()}
        fold_scales(found, {part: arrays.take(name, layers) for part, name in names.items()})
        self.folds.append("layer scale")
        return found
