"""The batch and every encoding made of it, each computed once a step."""

import math
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maskvlm_jax.models.fusion import Memory
from maskvlm_jax.models.vlm import VLM

Views = Mapping[str, frozenset[str]]  # modality ("image" | "text") -> views of it ("clean" | "masked")


class Positions(NamedTuple):
    """The masked positions of each example, in order: static count M, rows that have fewer are padded."""

    ids_BM: jax.Array
    valid_BM: jax.Array


def masked_positions(masked_BS: jax.Array, count: int) -> Positions:
    """The first `count` positions at which `masked_BS` is True."""
    masked_BM, ids_BM = jax.lax.top_k(masked_BS.astype(jnp.int32), count)  # ties: lowest position first
    return Positions(ids_BM, masked_BM > 0)


def masked_token_capacity(length: int, ratio: float) -> int:
    """Most tokens that can be masked in a sequence of `length` with two special tokens."""
    return max(1, math.ceil(ratio * (length - 2)))


class Context:
    """What objectives and evaluators read of a batch.

    A view is "clean" or "masked". All declared views of a modality go through its encoder in one call. Caches hold
    tracers: a Context lives inside one trace and wraps nothing in `jax.checkpoint`.

    Args:
        vlm: the model.
        batch: arrays as `data.batch` describes them.
        masked_patches: exact number of masked patches in each image.
        text_ratio: share of tokens that are masked; bounds the number of masked tokens.
        views: what will be read, by modality; anything else is encoded when asked for.
        key: draws dropout; None = none.
    """

    def __init__(
        self,
        vlm: VLM,
        batch: Mapping[str, jax.Array],
        *,
        masked_patches: int,
        text_ratio: float,
        views: Views,
        key: jax.Array | None = None,
    ):
        self.vlm, self.batch = vlm, batch
        self._masked_patches, self._text_ratio = masked_patches, text_ratio
        self._views, self._key, self._cache = views, key, {}

    # --- positions ---------------------------------------------------------------------------------------------------

    @property
    def masked_patches(self) -> Positions:
        return self._once("patches", lambda: masked_positions(self.batch["image_masked"], self._masked_patches))

    @property
    def masked_tokens(self) -> Positions:
        count = masked_token_capacity(self.batch["tokens"].shape[1], self._text_ratio)
        return self._once("tokens", lambda: masked_positions(self.batch["text_masked"], count))

    # --- one modality ------------------------------------------------------------------------------------------------

    def image(self, view: str) -> jax.Array:
        """image_BSD of a view: f_im(I) or f_im(I_m)."""
        return self._encoded("image", view, self._encode_images)

    def text(self, view: str) -> jax.Array:
        """text_BLD of a view: f_txt(T) or f_txt(T_m)."""
        return self._encoded("text", view, self._encode_texts)

    @property
    def image_embedding_BE(self) -> jax.Array:
        return self._once("image_embedding", lambda: self.vlm.embed_image(self.image("clean")))

    @property
    def text_embedding_BE(self) -> jax.Array:
        return self._once("text_embedding", lambda: self.vlm.embed_text(self.text("clean")))

    @property
    def similarity_BB(self) -> jax.Array:
        """Cosine of every image (rows) with every caption (columns), over the temperature; float32 logits."""
        return self._once(
            "similarity",
            lambda: (self.image_embedding_BE @ self.text_embedding_BE.T) / self.vlm.clamped_temperature(),
        )

    @property
    def same_pair_BB(self) -> jax.Array:
        """True where image and caption belong together: the diagonal, equal pictures, equal captions."""
        ids_B2 = self.batch["pair_id"]
        return jnp.any(ids_B2[:, None] == ids_B2[None, :], axis=-1)

    # --- both --------------------------------------------------------------------------------------------------------

    def image_memory(self, view: str = "clean") -> Memory:
        """An image view as the text stream reads it."""
        return self._once(f"image_memory/{view}", lambda: self.vlm.text_fusion.project(self.image(view)))

    def text_memory(self, view: str = "clean") -> Memory:
        """A text view as the image stream reads it."""
        valid = self.batch["token_valid"]
        return self._once(f"text_memory/{view}", lambda: self.vlm.image_fusion.project(self.text(view), valid))

    def fuse_image(self, view: str, other: str = "clean", read_BR: jax.Array | None = None) -> jax.Array:
        """g_im(image view, text `other` view) at the positions `read_BR`, all where None."""
        key = self.key(f"fuse_image/{view}/{other}")
        return self.vlm.image_fusion(self.image(view), self.text_memory(other), None, read_BR, key)

    def fuse_text(self, view: str, other: str = "clean", read_BR: jax.Array | None = None) -> jax.Array:
        """g_txt(text view, image `other` view) at the positions `read_BR`, all where None."""
        key, valid = self.key(f"fuse_text/{view}/{other}"), self.batch["token_valid"]
        return self.vlm.text_fusion(self.text(view), self.image_memory(other), valid, read_BR, key)

    def fuse_pairs(self, image_ids_P: jax.Array, text_ids_P: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Cross-modality class and start token, each (P, D), of image `image_ids_P[p]` with caption `text_ids_P[p]`."""
        first = jnp.zeros((self.batch["tokens"].shape[0], 1), jnp.int32)
        image_BSD = self.vlm.image_fusion.start(self.image("clean"), None, first, self.key("start/image"))
        text_BLD = self.vlm.text_fusion.start(
            self.text("clean"), self.batch["token_valid"], first, self.key("start/text")
        )
        # The text stream keeps its own padding when it is paired with another picture.
        return self.vlm.fuse_pairs(
            image_BSD[image_ids_P],
            self.image_memory().gather(image_ids_P),
            text_BLD[text_ids_P],
            self.text_memory().gather(text_ids_P),
            (self.key("pairs/image"), self.key("pairs/text")),
        )

    # --- randomness and caches ---------------------------------------------------------------------------------------

    def key(self, label: str) -> jax.Array | None:
        """The key of one use, or None where the context draws nothing."""
        return None if self._key is None else jax.random.fold_in(self._key, zlib.crc32(label.encode()))

    def _once(self, name: str, compute):
        if name not in self._cache:
            self._cache[name] = compute()
        return self._cache[name]

    def _encoded(self, modality: str, view: str, encode) -> jax.Array:
        cache = self._cache.setdefault(modality, {})
        if view not in cache:
            declared = self._views.get(modality, frozenset())
            views = sorted(declared | {view}) if view in declared else [view]
            cache |= dict(zip(views, encode(views), strict=True))
        return cache[view]

    def _encode_images(self, views: list[str]) -> list[jax.Array]:
        image, masked = self.batch["image"], self.batch["image_masked"]
        hidden = None if views == ["clean"] else jnp.concatenate([masked & (view == "masked") for view in views])
        out = self.vlm.image_encoder(jnp.concatenate([image] * len(views)), hidden, self.key("image" + "".join(views)))
        return jnp.split(out, len(views))

    def _encode_texts(self, views: list[str]) -> list[jax.Array]:
        names = {"clean": "tokens", "masked": "tokens_masked"}
        tokens = jnp.concatenate([self.batch[names[view]] for view in views])
        valid = jnp.concatenate([self.batch["token_valid"]] * len(views))
        return jnp.split(self.vlm.text_encoder(tokens, valid, self.key("text" + "".join(views))), len(views))
