"""What families of image encoders share: tokens before the patches, and the pixels that they were trained on."""

from typing import Any

import numpy as np

from maskvlm_jax.models.pretrained.families import base
from maskvlm_jax.models.pretrained.families.base import Arrays
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.runtime.pixels import IMAGENET_MEAN, IMAGENET_STD

BLANK = {"class_token": True, "distillation_token": False, "registers": 0, "norm_before": False}


class ImageFamily(base.Family):
    """Pre-norm blocks over patches with learned positions."""

    modality = "image"

    def values(self) -> dict[str, Any]:
        config = self.config
        width, hidden = config["hidden_size"], config.get("intermediate_size") or 0
        return BLANK | {
            "patch": config["patch_size"],
            "depth": config["num_hidden_layers"],
            "width": width,
            "heads": config["num_attention_heads"],
            "mlp_ratio": self.ratio(hidden, width) if hidden else config["mlp_ratio"],
            "activation": self.activation(config["hidden_act"]),
            "eps": config["layer_norm_eps"],
            "norm": "pre",
        }

    def parameters(self, arrays: Arrays) -> dict[str, np.ndarray]:
        return self.tokens_and_pixels(super().parameters(arrays))

    def pixel_statistics(self) -> tuple[Any, Any]:
        """Mean and standard deviation that its pixels, 0 to 1, were normalised by."""
        described = self.stored.preprocessor
        return described.get("image_mean") or self.mean, described.get("image_std") or self.std

    def tokens_and_pixels(self, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tokens in the shapes that ours have, no mask token that was never trained, and our pixels."""
        width, patch = found["norm/scale"].shape[-1], self.values()["patch"]
        if len(found["patch_embedding/kernel"]) != 3 * patch**2:
            raise UserError(f"{self.stored.name} does not read patches of {patch} x {patch} pixels in three colours")
        for name in ("class_token", "distillation_token", "register_tokens", "mask_token"):
            if name in found:
                found[name] = found[name].reshape(1, -1, width)
        found["position"] = found["position"].reshape(-1, width)
        if "mask_token" in found and not found["mask_token"].any():
            del found["mask_token"]
        return self._of_our_pixels(found)

    def _of_our_pixels(self, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Their (p - m) / s of pixels p in [0, 1] by ours: x = (ours * our s + our m - m) / s."""
        mean, std = (np.array(values, np.float64) for values in self.pixel_statistics())
        if mean.shape != (3,) or std.shape != (3,) or not np.all(std > 0):
            raise UserError(f"{self.stored.name} gives no mean and deviation of three colours; mend its preprocessor")
        ours_mean, ours_std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
        if np.allclose(mean, ours_mean) and np.allclose(std, ours_std):
            return found
        kernel = found["patch_embedding/kernel"].astype(np.float64)
        of_pixel = np.tile((ours_mean - mean) / std, len(kernel) // 3)  # channels come last in a patch
        bias = found["patch_embedding/bias"] + of_pixel @ kernel
        kernel = np.tile(ours_std / std, len(kernel) // 3)[:, None] * kernel
        self.folds.append(f"mean {mean.round(4).tolist()} and std {std.round(4).tolist()} of pixels")
        return found | {
            "patch_embedding/kernel": kernel.astype(np.float32),
            "patch_embedding/bias": bias.astype(np.float32),
        }
