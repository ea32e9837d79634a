"""Vision transformers of timm, in safetensors files beside timm's own config.json."""

from typing import Any

import numpy as np

from maskvlm_jax.models.pretrained.families.base import BLOCK, Arrays, Names, blocks, fold_scales
from maskvlm_jax.models.pretrained.families.pictures import BLANK, ImageFamily
from maskvlm_jax.models.pretrained.files import Stored
from maskvlm_jax.runtime.errors import UserError

DENSE = {"patch_embedding": "patch_embed.proj"}
DENSE |= blocks(
    "blocks.{}.", {"attention/out": "attn.proj", "feed_forward/up": "mlp.fc1", "feed_forward/down": "mlp.fc2"}
)
NORMS = blocks("blocks.{}.", {"norm1": "norm1", "norm2": "norm2"}) | {"norm": "norm"}
SCALES = {"attention/out": "blocks.{}.ls1.gamma", "feed_forward/down": "blocks.{}.ls2.gamma"}
TOKENS = {"class_token": "cls_token", "distillation_token": "dist_token", "register_tokens": "reg_token"}
# Width and heads by the middle of an architecture's name: its config.json gives them only where they are others.
_SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12), "large": (1024, 16), "huge": (1280, 16)}
_STARTS = tuple(f"{kind}_{size}" for kind in ("vit", "deit", "deit3") for size in _SIZES)
# Arguments of timm that change nothing in the arrays' meaning, or that the arrays tell themselves.
_KNOWN = {"img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "reg_tokens", "no_embed_class"}
_KNOWN |= {"init_values", "num_classes", "class_token", "global_pool", "dynamic_img_size", "qkv_bias", "pre_norm"}
# Parts of names of architectures that are computed otherwise, though their arrays are called the same.
_OTHERS = ("_pe_", "rope", "dinov3", "siglip", "relpos", "gap", "swiglu", "rmlp", "_rpn", "_xp", "_par")


class Family(ImageFamily):
    mean = std = (0.5, 0.5, 0.5)
    antialias = True

    @classmethod
    def reads(cls, stored: Stored) -> bool:
        return str(stored.config.get("architecture", "")).startswith(_STARTS)

    @property
    def _arrays(self) -> dict[str, np.ndarray]:
        return self.stored.arrays

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self._arrays:
            raise UserError(f"{self.stored.name} has no {name}: it is no plain vision transformer of timm")
        return self._arrays[name].shape

    def values(self) -> dict[str, Any]:
        width, _, patch, _ = self._shape("patch_embed.proj.weight")
        described, held, architecture = self.config.get("model_args") or {}, self._arrays, self.config["architecture"]
        others = [part for part in _OTHERS if part in architecture] + sorted(described.keys() - _KNOWN)
        if others:
            raise UserError(f"{self.stored.name} is no plain vision transformer of timm ({others[0]}); take another")
        usual_width, usual_heads = _SIZES[architecture.split("_")[1]]
        if "num_heads" not in described and width != usual_width:
            raise UserError(f"{self.stored.name} does not say how many heads share its width of {width}; take another")
        return BLANK | {
            "patch": patch,
            "depth": sum(name.endswith("attn.proj.weight") for name in held),
            "width": width,
            "heads": described.get("num_heads", usual_heads),
            "mlp_ratio": self.ratio(self._shape("blocks.0.mlp.fc1.weight")[0], width),
            "activation": "quick_gelu" if "quickgelu" in architecture else "gelu",
            "eps": 1e-5 if "norm_pre.weight" in held else 1e-6,  # CLIP's have the norm, and its eps
            "norm": "pre",
            "class_token": "cls_token" in held,
            "distillation_token": "dist_token" in held,
            "registers": held["reg_token"].shape[1] if "reg_token" in held else 0,
            "norm_before": "norm_pre.weight" in held,
        }

    def names(self) -> Names:
        held = self._arrays
        return Names(
            DENSE,
            NORMS | ({"norm_before": "norm_pre"} if "norm_pre.weight" in held else {}),
            {ours: theirs for ours, theirs in TOKENS.items() if theirs in held} | {"position": "pos_embed"},
            ignored=(r"head", r"fc_norm\.", r"attn_pool\.", r"pre_logits\."),
            without_bias=() if "patch_embed.proj.bias" in held else ("patch_embedding",),
        )

    def parameters(self, arrays: Arrays) -> dict[str, np.ndarray]:
        found, layers = super().parameters(arrays), self.values()["depth"]
        weights = np.split(arrays.take("blocks.{}.attn.qkv.weight", layers), 3, axis=1)
        has_bias = "blocks.0.attn.qkv.bias" in arrays
        biases = np.split(arrays.take("blocks.{}.attn.qkv.bias", layers), 3, axis=1) if has_bias else [None] * 3
        for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            found[f"{BLOCK}/attention/{part}/kernel"] = np.swapaxes(weight, 1, 2)
            found[f"{BLOCK}/attention/{part}/bias"] = np.zeros_like(weight[:, :, 0]) if bias is None else bias
        scaled = {part: theirs for part, theirs in SCALES.items() if theirs.format(0) in arrays}
        fold_scales(found, {part: arrays.take(theirs, layers) for part, theirs in scaled.items()})
        self.folds += ["layer scale"] if scaled else []
        return self._with_positions_of_tokens(found)

    def _with_positions_of_tokens(self, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Positions of class and distillation token too, zeros where timm adds none to them."""
        placed = sum(name in found for name in ("class_token", "distillation_token"))
        position = found["position"]
        if round(len(position) ** 0.5) ** 2 == len(position) and placed:
            self.folds.append("no position of the class token")
            position = np.concatenate([np.zeros((placed, position.shape[1]), np.float32), position])
        elif len(position) != placed + round((len(position) - placed) ** 0.5) ** 2:
            raise UserError(f"{self.stored.name} has positions that are no square grid of patches behind its tokens")
        return found | {"position": position}

    def pixel_statistics(self) -> tuple[Any, Any]:
        described = self.config.get("pretrained_cfg", {})
        return described.get("mean") or self.mean, described.get("std") or self.std
