"""ViT of transformers (`ViTModel`: AugReg, DINO), DeiT with its distillation token, and the encoder of ViTMAE."""

from typing import Any

from maskvlm_jax.models.pretrained.families.base import Names, blocks, without_bias
from maskvlm_jax.models.pretrained.families.pictures import ImageFamily

LAYER = "encoder.layer.{}."
# What DINOv2 calls so too.
EMBEDDING_AND_ATTENTION = {"patch_embedding": "embeddings.patch_embeddings.projection"} | blocks(
    LAYER,
    {
        "attention/query": "attention.attention.query",
        "attention/key": "attention.attention.key",
        "attention/value": "attention.attention.value",
        "attention/out": "attention.output.dense",
    },
)
FEED_FORWARD = blocks(LAYER, {"feed_forward/up": "intermediate.dense", "feed_forward/down": "output.dense"})
NORMS = blocks(LAYER, {"norm1": "layernorm_before", "norm2": "layernorm_after"}) | {"norm": "layernorm"}
ARRAYS = {"class_token": "embeddings.cls_token", "position": "embeddings.position_embeddings"}


class Family(ImageFamily):
    model_types = ("vit", "deit", "vit_mae")

    def values(self) -> dict[str, Any]:
        return super().values() | {"distillation_token": self._distilled}

    @property
    def _distilled(self) -> bool:
        return self.config["model_type"] == "deit"

    def names(self) -> Names:
        arrays = ARRAYS | ({"distillation_token": "embeddings.distillation_token"} if self._distilled else {})
        return Names(
            EMBEDDING_AND_ATTENTION | FEED_FORWARD,
            NORMS,
            arrays,
            prefixes=("vit.", "deit."),
            # Heads; the decoder of ViTMAE; the mask token of ViT, which only SimMIM's models have trained.
            ignored=(r"pooler\.", r"(cls_|distillation_)?classifier\.", r"decoder\.", r"embeddings\.mask_token$"),
            without_bias=without_bias(self.config),
        )
