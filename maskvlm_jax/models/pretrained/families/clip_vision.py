"""Vision towers of CLIP (OpenAI's, LAION's) and SigLIP; what they put behind the last norm is not read."""

from typing import Any

from maskvlm_jax.models.pretrained.families.base import Names, blocks
from maskvlm_jax.models.pretrained.families.pictures import ImageFamily

DENSE = {"patch_embedding": "embeddings.patch_embedding"}
DENSE |= blocks(
    "encoder.layers.{}.",
    {
        "attention/query": "self_attn.q_proj",
        "attention/key": "self_attn.k_proj",
        "attention/value": "self_attn.v_proj",
        "attention/out": "self_attn.out_proj",
        "feed_forward/up": "mlp.fc1",
        "feed_forward/down": "mlp.fc2",
    },
)
NORMS = blocks("encoder.layers.{}.", {"norm1": "layer_norm1", "norm2": "layer_norm2"}) | {"norm": "post_layernorm"}
POSITION = {"position": "embeddings.position_embedding.weight"}
_CLIP = ("clip", "clip_vision_model")


class Family(ImageFamily):
    model_types = (*_CLIP, "siglip", "siglip_vision_model")

    def __init__(self, stored):
        super().__init__(stored)
        self._clip = self.config.get("model_type") in _CLIP
        # A model of both towers describes them apart, and leaves out what is as it is by default.
        self.config = self.config.get("vision_config") or self.config
        default = ("quick_gelu", 1e-5) if self._clip else ("gelu_pytorch_tanh", 1e-6)
        sizes = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
        sizes |= {"patch_size": 32 if self._clip else 16}
        self.config = sizes | {"hidden_act": default[0], "layer_norm_eps": default[1]} | self.config

    @property
    def mean(self) -> tuple[float, ...]:
        return (0.48145466, 0.4578275, 0.40821073) if self._clip else (0.5, 0.5, 0.5)

    @property
    def std(self) -> tuple[float, ...]:
        return (0.26862954, 0.26130258, 0.27577711) if self._clip else (0.5, 0.5, 0.5)

    def values(self) -> dict[str, Any]:
        return super().values() | {"class_token": self._clip, "norm_before": self._clip}

    def names(self) -> Names:
        clip = self._clip
        return Names(
            DENSE,
            NORMS | ({"norm_before": "pre_layrnorm"} if clip else {}),  # sic
            POSITION | ({"class_token": "embeddings.class_embedding"} if clip else {}),
            prefixes=("vision_model.",),
            ignored=(
                r"head\.",
                r"text_model\.",
                r"(visual|text)_projection\.",
                r"logit_",
                r"embeddings\.position_ids$",
            ),
            without_bias=("patch_embedding",) if clip else (),
        )
