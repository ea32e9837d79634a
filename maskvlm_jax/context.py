"""The batch and every encoding made of it, each computed once a step."""

import math
import zlib
from collections.abc import Mapping
from typing import NamedTuple, Optional

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.fusion import Fused, PairSide, Side
from maskvlm_jax.models.layers import Positions, interleave, separate, take_rows
from maskvlm_jax.models.vision import normalised
from maskvlm_jax.models.vlm import VLM, cosine
from maskvlm_jax.queue import Queue

Views = Mapping[str, frozenset[str]]  # modality ("image" | "text") -> views of it ("clean" | "masked")


def masked_positions(masked_BS: jax.Array, count: int) -> Positions:
    """The first `count` positions at which `masked_BS` is True."""
    masked_BM, ids_BM = jax.lax.top_k(masked_BS.astype(jnp.int32), count)  # ties: lowest position first
    return Positions(ids_BM, masked_BM > 0)


def masked_token_capacity(length: int, ratio: float) -> int:
    """Most tokens that can be masked in a sequence of `length` with two special tokens."""
    return max(1, math.ceil(ratio * (length - 2)))


def visible_token_capacity(length: int, ratio: float) -> int:
    """Most tokens that can stay visible in a sequence of `length` in which an exact share is masked."""
    return length - masked_token_capacity(length, ratio)


class Whole(NamedTuple):
    """The batch that a microbatch is a part of: every `parts`-th example from number `part` on.

    batch: its arrays; image_embedding_BE, text_embedding_BE: of all its examples, without a gradient, None where the
    model has no contrastive space.
    """

    batch: Mapping[str, jax.Array]
    image_embedding_BE: jax.Array | None
    text_embedding_BE: jax.Array | None
    part: jax.Array
    parts: int

    def rows(self, size: int) -> jax.Array:
        """Which examples the microbatch of `size` holds."""
        return self.part + self.parts * jnp.arange(size)

    def embed(self, all_BE: jax.Array, own_BE: jax.Array) -> jax.Array:
        """`all_BE` with the microbatch's own rows, whose gradient counts `parts` times.

        An in-batch loss is computed whole in every microbatch, and the mean over microbatches is taken of gradients:
        of a row it must be the sum, since only one microbatch has that row's.
        """
        still_BE = jax.lax.stop_gradient(own_BE)
        scaled_BE = still_BE + self.parts * (own_BE - still_BE)
        cut = all_BE.reshape(-1, self.parts, all_BE.shape[-1])
        return jax.lax.dynamic_update_index_in_dim(cut, scaled_BE, self.part, axis=1).reshape(all_BE.shape)


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
        teacher: the same batch over the moving average of the parameters; None where there is none.
        twins: the moving average's objective for each objective, by `id`.
        queue: features of earlier batches, see `maskvlm_jax.queue`; None where there is none.
        whole: the batch that this one is a part of; None where it is no part. What is said of the batch as a whole
            (embeddings, similarities, pair ids, means) is then of that one.
        progress: share of the training that is done, 0 to 1; what is ramped reads it.
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
        teacher: Optional["Context"] = None,
        twins: Mapping[int, nnx.Module] | None = None,
        queue: Queue | None = None,
        whole: Whole | None = None,
        progress: jax.Array | float = 1.0,
    ):
        self.vlm, self.batch, self.queue, self._teacher, self._twins = vlm, batch, queue, teacher, twins
        self.whole, self.progress = whole, progress
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

    @property
    def visible_patches(self) -> Positions:
        hidden_BN = self.batch["image_masked"]
        count = hidden_BN.shape[1] - self._masked_patches
        return self._once("visible_patches", lambda: masked_positions(~hidden_BN, count))

    @property
    def visible_tokens(self) -> Positions:
        visible_BL = self.batch["token_valid"] & ~self.batch["text_masked"]
        count = visible_token_capacity(visible_BL.shape[1], self._text_ratio)
        return self._once("visible_tokens", lambda: masked_positions(visible_BL, count))

    @property
    def pixels_BYXC(self) -> jax.Array:
        """The normalised pictures: what the encoder reads and masked image modelling rebuilds."""
        return normalised(self.batch["image"])

    # --- one modality ------------------------------------------------------------------------------------------------

    def image(self, view: str) -> jax.Array:
        """image_BSD of a view: f_im(I) or f_im(I_m)."""
        return self._encoded("image", view, self._encode_images)

    def text(self, view: str) -> jax.Array:
        """text_BLD of a view: f_txt(T) or f_txt(T_m)."""
        return self._encoded("text", view, self._encode_texts)

    @property
    def image_embedding_BE(self) -> jax.Array:
        """Of the whole batch."""
        own = self._once("image_embedding", lambda: self.vlm.embed_image(self.image("clean")))
        return own if self.whole is None else self.whole.embed(self.whole.image_embedding_BE, own)

    @property
    def text_embedding_BE(self) -> jax.Array:
        """Of the whole batch."""
        own = self._once("text_embedding", lambda: self.vlm.embed_text(self.text("clean")))
        return own if self.whole is None else self.whole.embed(self.whole.text_embedding_BE, own)

    @property
    def similarity_BB(self) -> jax.Array:
        """Cosine of every image (rows) with every caption (columns), over the temperature; float32 logits."""
        return self._once(
            "similarity",
            lambda: cosine(self.image_embedding_BE, self.text_embedding_BE) / self.vlm.current_temperature(),
        )

    @property
    def pair_ids_B2(self) -> jax.Array:
        return self.batch["pair_id"] if self.whole is None else self.whole.batch["pair_id"]

    @property
    def own_rows(self) -> jax.Array:
        """The rows of the whole batch that are this context's own."""
        size = len(self.batch["pair_id"])
        return jnp.arange(size) if self.whole is None else self.whole.rows(size)

    def per_example(self, name: str) -> jax.Array | None:
        """How often `batch[name]` is True in an example of the whole batch, in the mean; None where this is it."""
        if self.whole is None:
            return None
        return jnp.mean(jnp.sum(self.whole.batch[name].astype(jnp.float32), axis=1))

    @property
    def same_pair_BB(self) -> jax.Array:
        """True where image and caption belong together: the diagonal, equal pictures, equal captions."""
        ids_B2 = self.pair_ids_B2
        return jnp.any(ids_B2[:, None] == ids_B2[None, :], axis=-1)

    # --- both --------------------------------------------------------------------------------------------------------

    def image_side(self, view: str = "clean") -> Side:
        """An image view as the fusion reads it."""
        fusion, hides = self.vlm.fusion, self.vlm.fusion.drops and view == "masked"
        return self._once(
            f"image_side/{view}",
            lambda: fusion.image_side(self.image(view), self.visible_patches if hides else None),
        )

    def text_side(self, view: str = "clean") -> Side:
        """A text view as the fusion reads it."""
        fusion, hides = self.vlm.fusion, self.vlm.fusion.drops and view == "masked"
        return self._once(
            f"text_side/{view}",
            lambda: fusion.text_side(
                self.text(view), self.batch["token_valid"], self.visible_tokens if hides else None
            ),
        )

    def fused(self, image_view: str, text_view: str) -> Fused:
        """An image view and a text view, each in the light of the other."""
        keys = self.key(f"fuse_image/{image_view}/{text_view}"), self.key(f"fuse_text/{text_view}/{image_view}")
        return self._once(
            f"fused/{image_view}/{text_view}",
            lambda: self.vlm.fusion.fuse(self.image_side(image_view), self.text_side(text_view), keys),
        )

    def fuse_image(self, view: str, other: str = "clean", read_BR: jax.Array | None = None) -> jax.Array:
        """The image view, fused with the `other` view of the text, at positions `read_BR` of it, all where None."""
        return self.fused(view, other).image(read_BR)

    def fuse_text(self, view: str, other: str = "clean", read_BR: jax.Array | None = None) -> jax.Array:
        """The text view, fused with the `other` view of the image, at positions `read_BR` of it, all where None."""
        return self.fused(other, view).text(read_BR)

    def fuse_masked_patches(self, other: str = "clean") -> jax.Array:
        """fused_BMD at the masked patches, once for all objectives that read them."""
        read_BM = self.masked_patches.ids_BM + self.vlm.image_encoder.class_tokens
        return self._once(f"masked_patches/{other}", lambda: self.fuse_image("masked", other, read_BM))

    def fuse_masked_tokens(self, other: str = "clean") -> jax.Array:
        """fused_BMD at the masked tokens, once for all objectives that read them."""
        read_BM = self.masked_tokens.ids_BM
        return self._once(f"masked_tokens/{other}", lambda: self.fuse_text("masked", other, read_BM))

    def fuse_pairs(self, image_ids_P: jax.Array, text_ids_P: jax.Array) -> jax.Array:
        """pair_PD, what is matched, of own image `image_ids_P[p]` with own caption `text_ids_P[p]`."""
        image, text = self._pair_sides()
        return self._match(image.gather(image_ids_P), text.gather(text_ids_P))

    def fuse_with_negatives(self, image_of_text_B: jax.Array, text_of_image_B: jax.Array, shares: int = 1) -> jax.Array:
        """pair_PD, three an example: the pair itself, its caption with another picture, its picture with another
        caption; the others are rows of the whole batch, of the example's own part of it where there are `shares`."""
        image, text = self._pair_sides()
        if self.whole is None:
            other_image, other_text = image.gather(image_of_text_B, shares), text.gather(text_of_image_B, shares)
        else:  # they may be in another microbatch: encoded once more, with their gradient
            other_image = self._other_images(image_of_text_B, shares)
            other_text = self._other_texts(text_of_image_B, shares)
        return self._match(
            PairSide.interleave([image, other_image, image]), PairSide.interleave([text, text, other_text])
        )

    def _pair_sides(self) -> tuple[PairSide, PairSide]:
        fusion = self.vlm.fusion
        image = fusion.pair_image(self.image_side(), self.key("start/image"))
        return image, fusion.pair_text(self.text_side(), self.key("start/text"))

    def _match(self, image: PairSide, text: PairSide) -> jax.Array:
        return self.vlm.fusion.match(image, text, (self.key("pairs/image"), self.key("pairs/text")))

    def _other_images(self, rows: jax.Array, shares: int) -> PairSide:
        image = normalised(take_rows(self.whole.batch["image"], rows, 0, shares))
        image_BSD = self.vlm.encode_image(image, None, None, self.key("others"))
        return self.vlm.fusion.pair_image(self.vlm.fusion.image_side(image_BSD), self.key("start/other_images"))

    def _other_texts(self, rows: jax.Array, shares: int) -> PairSide:
        tokens_BL, valid_BL = (take_rows(self.whole.batch[name], rows, 0, shares) for name in ("tokens", "token_valid"))
        text_BLD = self.vlm.text_encoder(tokens_BL, valid_BL, self.key("other_texts"))
        return self.vlm.fusion.pair_text(self.vlm.fusion.text_side(text_BLD, valid_BL), self.key("start/other_texts"))

    def ramp(self, start: float, stop: float) -> jax.Array | float:
        """0 before the share `start` of the training, 1 from the share `stop` on, a line between; (0, 0): 1 always."""
        if stop <= start:
            return jnp.asarray(self.progress >= start, jnp.float32)
        return jnp.clip((self.progress - start) / (stop - start), 0.0, 1.0)

    @property
    def teacher(self) -> "Context":
        """The same batch over the moving average of the parameters (MAMO, ALBEF); nothing of it has a gradient."""
        if self._teacher is None:
            raise ValueError("there is no teacher: this model has no moving average")
        return self._teacher

    def twin(self, objective: nnx.Module) -> nnx.Module:
        """An objective with the moving average's heads."""
        return self._twins[id(objective)]

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
        image, masked, hidden_by = self.pixels_BYXC, self.batch["image_masked"], self.vlm.image_encoder.hidden
        key = self.key("image" + "".join(views))
        if hidden_by == "later":
            return [self.vlm.encode_image(image, None, None, key)] * len(views)
        if hidden_by == "drop" and len(views) > 1:
            return [self._encode_images([view])[0] for view in views]
        hidden = None if views == ["clean"] else interleave([masked & (view == "masked") for view in views])
        visible = self.visible_patches if hidden_by == "drop" and hidden is not None else None
        return separate(self.vlm.encode_image(interleave([image] * len(views)), hidden, visible, key), len(views))

    def _encode_texts(self, views: list[str]) -> list[jax.Array]:
        names = {"clean": "tokens", "masked": "tokens_masked"}
        tokens = interleave([self.batch[names[view]] for view in views])
        valid = interleave([self.batch["token_valid"]] * len(views))
        return separate(self.vlm.text_encoder(tokens, valid, self.key("text" + "".join(views))), len(views))
