"""The two-stream vision-language model of MaskVLM: two encoders, two cross-modality encoders, a shared embedding."""

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.fusion import CrossStack, Memory
from maskvlm_jax.models.layers import Dense
from maskvlm_jax.models.text import TextEncoder
from maskvlm_jax.models.vision import ImageEncoder

TEMPERATURE_RANGE = (0.001, 0.5)


class VLM(nnx.Module):
    """Image encoder f_im, text encoder f_txt, cross-modality encoders g_im and g_txt, and the contrastive space.

    Args:
        image, text, fusion: arguments of `ImageEncoder`, `TextEncoder` and the two `CrossStack`s.
        embed: width E of the contrastive space.
        temperature: initial temperature of the similarity; learned, clamped to `TEMPERATURE_RANGE` as ALBEF.
        shared: arguments that every block takes: init_std, remat, unroll, dtype.
    """

    def __init__(
        self, *, image: dict, text: dict, fusion: dict, embed: int, temperature: float, shared: dict, rngs: nnx.Rngs
    ):
        self.image_encoder = ImageEncoder(**image, **shared, rngs=rngs)
        self.text_encoder = TextEncoder(**text, **shared, rngs=rngs)
        self.image_fusion = CrossStack(**fusion, **shared, rngs=rngs)
        self.text_fusion = CrossStack(**fusion, **shared, rngs=rngs)
        head = {"init_std": shared["init_std"], "rngs": rngs}
        self.image_projection = Dense(image["width"], embed, **head)
        self.text_projection = Dense(text["width"], embed, **head)
        # A strong float32: a weak-typed scalar would compile the step twice.
        self.temperature = nnx.Param(jnp.asarray(temperature, jnp.float32))

    def embed_image(self, image_BSD: jax.Array) -> jax.Array:
        """image_BE: the class token in the contrastive space, unit length, float32."""
        return normalize(self.image_projection(image_BSD[:, 0].astype(jnp.float32)))

    def embed_text(self, text_BLD: jax.Array) -> jax.Array:
        """text_BE: the start token in the contrastive space, unit length, float32."""
        return normalize(self.text_projection(text_BLD[:, 0].astype(jnp.float32)))

    def clamped_temperature(self) -> jax.Array:
        return jnp.clip(self.temperature[...], *TEMPERATURE_RANGE)

    def fuse_pairs(
        self,
        image_start_PSD: jax.Array,
        image_memory: Memory,
        text_start_PLD: jax.Array,
        text_memory: Memory,
        keys: tuple[jax.Array | None, jax.Array | None] = (None, None),
    ) -> tuple[jax.Array, jax.Array]:
        """Cross-modality class and start tokens of P pairs, each (P, D).

        Args:
            image_start_PSD, text_start_PLD: the streams after `CrossStack.start` of `image_fusion`, `text_fusion`.
            image_memory: the images as `text_fusion` reads them; text_memory: the captions as `image_fusion` does.
            keys: draw the dropout of the image and of the text stream.
        """
        first = jnp.zeros((image_start_PSD.shape[0], 1), jnp.int32)
        text_valid = text_memory.valid_BT
        image = self.image_fusion.finish(image_start_PSD, text_memory, None, first, keys[0])
        text = self.text_fusion.finish(text_start_PLD, image_memory, text_valid, first, keys[1])
        return image[:, 0], text[:, 0]


def normalize(x: jax.Array) -> jax.Array:
    """Rows of unit Euclidean length; finite, with finite gradients, at zero."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))
