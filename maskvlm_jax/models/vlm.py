"""The vision-language model: two encoders, their fusion, and a shared embedding."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.fusion import CrossFusion
from maskvlm_jax.models.joint import AutoencoderFusion, JointFusion
from maskvlm_jax.models.layers import Dense
from maskvlm_jax.models.text import TextEncoder
from maskvlm_jax.models.vision import ImageEncoder

TEMPERATURE_RANGE = (0.001, 0.5)
FUSIONS = {"cross": CrossFusion, "joint": JointFusion, "autoencoder": AutoencoderFusion}


class VLM(nnx.Module):
    """Image encoder, text encoder, fusion, and the contrastive space.

    Args:
        image, text: arguments of `ImageEncoder` and `TextEncoder`.
        fusion: arguments of a fusion, and its `kind`: "cross" (MaskVLM, ALBEF), "joint" (MAMO, MLIM), "autoencoder"
            (M3AE) or "none".
        embed: width E of the contrastive space; 0 = there is none.
        temperature: initial temperature of the similarity; learned, kept in `TEMPERATURE_RANGE` as ALBEF.
        temperature_scale: what is learned, the temperature's logarithm ("log", as CLIP) or itself ("linear", as
            ALBEF).
        shared_mask: hidden image positions enter as the word embedding of the mask token (MLIM), not as a token of
            their own.
        shared: arguments that every block takes: init_std, remat, unroll, dtype.
    """

    def __init__(
        self,
        *,
        image: dict,
        text: dict,
        fusion: dict,
        embed: int,
        temperature: float,
        temperature_scale: str = "log",
        shared_mask: bool = False,
        shared: dict,
        rngs: nnx.Rngs,
    ):
        fusion = dict(fusion)
        kind = fusion.pop("kind")
        self.image_encoder = ImageEncoder(**image, mask_token=not shared_mask, **shared, rngs=rngs)
        self.text_encoder = TextEncoder(**text, **shared, rngs=rngs)
        self.fusion = FUSIONS[kind](**fusion, **shared, rngs=rngs) if kind != "none" else None
        head = {"init_std": shared["init_std"], "exact": True, "rngs": rngs}
        self.image_projection = Dense(image["width"], embed, **head) if embed else None
        self.text_projection = Dense(text["width"], embed, **head) if embed else None
        self.log_scale = temperature_scale == "log"
        start = math.log(temperature) if self.log_scale else temperature
        # A strong float32: a weak-typed scalar would compile the step twice.
        self.temperature = nnx.Param(jnp.asarray(start, jnp.float32)) if embed else None
        self.embed, self.shared_mask = embed, shared_mask

    def encode_image(self, image_BYXC: jax.Array, masked_BN: jax.Array | None = None, *args) -> jax.Array:
        """image_BSD; see `ImageEncoder`."""
        mask_token = self.text_encoder.mask_embedding if self.shared_mask else None
        return self.image_encoder(image_BYXC, masked_BN, *args, mask_token=mask_token)

    def embed_image(self, image_BSD: jax.Array) -> jax.Array:
        """image_BE: the class token in the contrastive space, unit length, float32."""
        return normalize(self.image_projection(image_BSD[:, 0].astype(jnp.float32)))

    def embed_text(self, text_BLD: jax.Array) -> jax.Array:
        """text_BE: the start token in the contrastive space, unit length, float32."""
        return normalize(self.text_projection(text_BLD[:, 0].astype(jnp.float32)))

    def current_temperature(self) -> jax.Array:
        """τ of the similarity, a scalar in `TEMPERATURE_RANGE`."""
        # Clipped on the linear scale alone, for runs begun when nothing kept the parameter itself in its range.
        value = self.temperature[...]
        return jnp.exp(value) if self.log_scale else jnp.clip(value, *TEMPERATURE_RANGE)

    def constrain(self) -> None:
        """Puts the temperature back into its range after an update: outside of it, it would have no gradient."""
        if self.temperature is not None:
            ends = tuple(map(math.log, TEMPERATURE_RANGE)) if self.log_scale else TEMPERATURE_RANGE
            self.temperature[...] = jnp.clip(self.temperature[...], *ends)


def cosine(left_BE: jax.Array, right_GE: jax.Array) -> jax.Array:
    """cosine_BG of rows of unit length, in full float32: the temperature makes errors up to a thousand times larger."""
    return jnp.matmul(left_BE, right_GE.T, precision=jax.lax.Precision.HIGHEST)


def normalize(x: jax.Array) -> jax.Array:
    """Rows of unit Euclidean length; finite, with finite gradients, at zero."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))
