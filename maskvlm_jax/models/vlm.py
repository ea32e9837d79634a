"""The vision-language model: two encoders, their fusion, and a shared embedding."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.block import BlockSpec
from maskvlm_jax.models.co import CoFusion
from maskvlm_jax.models.experts import ExpertFusion
from maskvlm_jax.models.fusion import CrossFusion, Lengths
from maskvlm_jax.models.joint import AutoencoderFusion, JointFusion
from maskvlm_jax.models.pooling import Projection, attention_pool, centred, pool, projection
from maskvlm_jax.models.text import TextEncoder
from maskvlm_jax.models.vision import ImageEncoder

FIRST = {"image": "first", "text": "first", "layers": 1, "dropout": 0.0, "centred": False}
TEMPERATURE_RANGE = (0.001, 0.5)
FUSIONS = {"cross": CrossFusion, "co": CoFusion, "joint": JointFusion, "autoencoder": AutoencoderFusion}
FUSIONS |= {"experts": ExpertFusion}


class VLM(nnx.Module):
    """Image encoder, text encoder, fusion, and the contrastive space.

    Args:
        image, text: values of a `BlockSpec` and arguments of `ImageEncoder` and `TextEncoder`.
        fusion: likewise of a fusion, and its `kind`: "cross" (MaskVLM, ALBEF), "co" (medical M3AE), "joint" (MAMO,
            MLIM), "autoencoder" (M3AE), "experts" (EVE) or "none". The kind of its blocks is `block_kind`. Where the
            text's `kind` is "none" too, the model is one of pictures alone.
        embed: width E of the contrastive space; 0 = there is none.
        temperature: initial temperature of the similarity; learned, kept in `TEMPERATURE_RANGE` as ALBEF.
        temperature_scale: what is learned, the temperature's logarithm ("log", as CLIP) or itself ("linear", as
            ALBEF).
        shared_mask: hidden image positions enter as the word embedding of the mask token (MLIM), not as a token of
            their own.
        pooling: how a sequence becomes a vector of the contrastive space: `image` and `text`, each "first" (class or
            start token), "mean" (of the patches, of the words with start and end), "both", "attention" or
            "first+attention" (see `models.pooling`); `layers`: 1 or 2; `dropout`: of the hidden units of two;
            `centred`: of what the encoders give, learned centres are subtracted first. They are zeros in a new model;
            training starts them from means (`training.centring`).
        shared: values that all blocks have: init_std, remat, unroll, dtype.
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
        pooling: Mapping[str, Any] = FIRST,
        shared: dict,
        rngs: nnx.Rngs,
    ):
        (image_blocks, image), (text_blocks, text) = (BlockSpec.split(part | shared) for part in (image, text))
        self.image_encoder = ImageEncoder(image_blocks, **image, mask_token=not shared_mask, rngs=rngs)
        self.text_encoder = TextEncoder(text_blocks, **text, rngs=rngs) if text_blocks.kind != "none" else None
        lengths = Lengths(self.image_encoder.prefix, self.image_encoder.patches, text["max_length"])
        self.fusion = _fusion(fusion | shared, lengths, rngs)
        head = {"layers": pooling["layers"], "rate": pooling["dropout"], "exact": True}
        head |= {"init_std": shared["init_std"], "rngs": rngs}
        image_kind, text_kind = pooling["image"], pooling["text"]
        self.image_projection = projection(image_blocks.width, embed, kind=image_kind, **head) if embed else None
        self.text_projection = projection(text_blocks.width, embed, kind=text_kind, **head) if embed else None
        self.image_pooling, self.text_pooling = image_kind, text_kind
        options = {"init_std": shared["init_std"], "rngs": rngs}
        of_image = attention_pool(image_blocks.width, image_blocks.heads, kind=image_kind, **options) if embed else None
        of_text = attention_pool(text_blocks.width, text_blocks.heads, kind=text_kind, **options) if embed else None
        self.image_attention, self.text_attention = of_image, of_text
        centres = bool(embed) and pooling["centred"]
        self.image_centre = nnx.Param(jnp.zeros((2, image_blocks.width))) if centres else None
        self.text_centre = nnx.Param(jnp.zeros((2, text_blocks.width))) if centres else None
        self.log_scale = temperature_scale == "log"
        start = math.log(temperature) if self.log_scale else temperature
        # A strong float32: a weak-typed scalar would compile the step twice.
        self.temperature = nnx.Param(jnp.asarray(start, jnp.float32)) if embed else None
        self.embed, self.shared_mask = embed, shared_mask

    @property
    def pair_width(self) -> int:
        """How wide the fused vector of a pair is."""
        return self.fusion.pair_vectors * self.text_encoder.width

    def encode_image(self, image_BYXC: jax.Array, masked_BN: jax.Array | None = None, *args) -> jax.Array:
        """image_BSD; see `ImageEncoder`."""
        mask_token = self.text_encoder.mask_embedding if self.shared_mask else None
        return self.image_encoder(image_BYXC, masked_BN, *args, mask_token=mask_token)

    def embed_image(self, image_BSD: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """image_BE: pictures in the contrastive space, unit length, float32. `key` draws dropout."""
        return normalize(self.project_image(image_BSD, key))

    def embed_text(self, text_BLD: jax.Array, valid_BL: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """text_BE: captions in the contrastive space, unit length, float32. `key` draws dropout."""
        return normalize(self.project_text(text_BLD, valid_BL, key))

    def project_image(self, image_BSD: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """image_BE before its length is made one."""
        image_BSD = image_BSD if self.image_centre is None else centred(image_BSD, self.image_centre[...])
        pooled_BD = pool(image_BSD, self.image_pooling, self.image_attention, before=self.image_encoder.prefix)
        return _projected(self.image_projection, pooled_BD, key)

    def project_text(self, text_BLD: jax.Array, valid_BL: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """text_BE before its length is made one."""
        text_BLD = text_BLD if self.text_centre is None else centred(text_BLD, self.text_centre[...])
        pooled_BD = pool(text_BLD, self.text_pooling, self.text_attention, valid_BS=valid_BL)
        return _projected(self.text_projection, pooled_BD, key)

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


def _fusion(options: dict, lengths: Lengths, rngs: nnx.Rngs) -> nnx.Module | None:
    options = dict(options)
    kind = options.pop("kind")
    if kind == "none":
        return None
    if "block_kind" in options:  # `kind` is the fusion's own
        options["kind"] = options.pop("block_kind")
    spec, options = BlockSpec.split(options)
    return FUSIONS[kind](spec, lengths, **options, rngs=rngs)


def _projected(projection: nnx.Module, pooled_BD: jax.Array, key: jax.Array | None) -> jax.Array:
    return projection(pooled_BD, key) if isinstance(projection, Projection) else projection(pooled_BD)


def cosine(left_BE: jax.Array, right_GE: jax.Array) -> jax.Array:
    """cosine_BG of rows of unit length, in full float32: the temperature makes errors up to a thousand times larger."""
    return jnp.matmul(left_BE, right_GE.T, precision=jax.lax.Precision.HIGHEST)


def normalize(x: jax.Array) -> jax.Array:
    """Rows of unit Euclidean length; finite, with finite gradients, at zero."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))
