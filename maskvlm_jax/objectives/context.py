"""The batch and every encoding made of it, each computed once a step."""

import copy
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Optional

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.data.batch import FEATURES, TEXT
from maskvlm_jax.models import auxiliary
from maskvlm_jax.models.fusion import Attention, Fused, PairSide, Side
from maskvlm_jax.models.layers import Positions, interleave, separate
from maskvlm_jax.models.vision import normalised
from maskvlm_jax.models.vlm import VLM, cosine
from maskvlm_jax.objectives import masked_positions
from maskvlm_jax.objectives.feature_queue import Queue
from maskvlm_jax.objectives.full_batch import FullBatch

Views = Mapping[str, frozenset[str]]  # modality ("image" | "text") -> views of it ("clean" | "masked")


class Context:
    """What objectives and evaluators read of a batch.

    A view is "clean" or "masked". All declared views of a modality go through its encoder in one call. Caches hold
    tracers: a Context lives inside one trace and wraps nothing in `jax.checkpoint`.

    Args:
        vlm: the model.
        batch: arrays as `data.batch` describes them.
        masked_patch_count: exact number of masked patches in each image.
        text_ratio: share of tokens that are masked; bounds the number of masked tokens.
        views: what will be read, by modality; anything else is encoded when asked for.
        key: draws dropout; None = none.
        teacher: the same batch over the moving average of the parameters; None where there is none.
        teacher_heads: the moving average's objective for each objective, by `id`.
        queue: features of earlier batches, see `feature_queue`; None where there is none.
        full: the batch that this one is a part of; None if it is not a part. What is said of the batch as a whole
            (embeddings, similarities, pair ids, means) is then of that one.
        progress: share of the training that is done, 0 to 1; what is ramped reads it.
        silent: its blocks hand out nothing, see `models.auxiliary`.

    Attributes:
        auxiliary: name -> what blocks handed out so far, arrays with an axis of layers first. Only for objectives with
            `reads_auxiliary`.
        kept: what objectives keep from step to step, by `id`; see `Objective.kept`.
    """

    auxiliary: auxiliary.Values
    kept: Mapping[int, Mapping[str, jax.Array]]

    def __init__(
        self,
        vlm: VLM,
        batch: Mapping[str, jax.Array],
        *,
        masked_patch_count: int,
        text_ratio: float,
        views: Views,
        key: jax.Array | None = None,
        teacher: Optional["Context"] = None,
        teacher_heads: Mapping[int, nnx.Module] | None = None,
        queue: Queue | None = None,
        full: FullBatch | None = None,
        progress: jax.Array | float = 1.0,
        silent: bool = False,
    ):
        self.vlm, self.batch, self.queue, self._teacher, self._teacher_heads = vlm, batch, queue, teacher, teacher_heads
        self.full, self.progress = full, progress
        self._masked_patch_count, self._text_ratio = masked_patch_count, text_ratio
        self._views, self._key, self._cache, self._silent = views, key, {}, silent

    @property
    def masked_patches(self) -> Positions:
        hidden_BN, count = self.batch["image_masked"], self._masked_patch_count
        return self._once("patches", lambda: masked_positions.positions_where(hidden_BN, count))

    @property
    def masked_tokens(self) -> Positions:
        count = masked_positions.masked_token_capacity(self.batch["tokens"].shape[1], self._text_ratio)
        return self._once("tokens", lambda: masked_positions.positions_where(self.batch["text_masked"], count))

    @property
    def visible_patches(self) -> Positions:
        hidden_BN = self.batch["image_masked"]
        count = hidden_BN.shape[1] - self._masked_patch_count
        return self._once("visible_patches", lambda: masked_positions.positions_where(~hidden_BN, count))

    @property
    def visible_tokens(self) -> Positions:
        visible_BL = self.batch["token_valid"] & ~self.batch["text_masked"]
        count = masked_positions.visible_token_capacity(visible_BL.shape[1], self._text_ratio)
        return self._once("visible_tokens", lambda: masked_positions.positions_where(visible_BL, count))

    @property
    def pixels_BYXC(self) -> jax.Array:
        """The normalised pictures: what the encoder reads and masked image modelling rebuilds."""
        return normalised(self.batch["image"])

    def image(self, view: str) -> jax.Array:
        """image_BSD of a view: f_im(I) or f_im(I_m)."""
        return self._encoded("image", view, self._encode_images)

    def text(self, view: str) -> jax.Array:
        """text_BLD of a view: f_txt(T) or f_txt(T_m)."""
        return self._encoded("text", view, self._encode_texts)

    @property
    def image_embedding_BE(self) -> jax.Array:
        """Of the whole batch."""
        own = self._once("image_embedding", lambda: self.vlm.embed_image(self.image("clean"), self.key("image_head")))
        return own if self.full is None else self.full.embed(self.full.image_embedding_BE, own)

    @property
    def text_embedding_BE(self) -> jax.Array:
        """Of the whole batch."""
        valid_BL, key = self.batch["token_valid"], self.key("text_head")
        own = self._once("text_embedding", lambda: self.vlm.embed_text(self.text("clean"), valid_BL, key))
        return own if self.full is None else self.full.embed(self.full.text_embedding_BE, own)

    @property
    def similarity_BB(self) -> jax.Array:
        """Cosine of every image (rows) with every caption (columns), over the temperature; float32 logits."""
        image_BE, text_BE = self.image_embedding_BE, self.text_embedding_BE
        return self._once("similarity", lambda: cosine(image_BE, text_BE) / self.vlm.current_temperature())

    @property
    def pair_ids_B2(self) -> jax.Array:
        return self.batch["pair_id"] if self.full is None else self.full.batch["pair_id"]

    @property
    def own_rows(self) -> jax.Array:
        """The rows of the whole batch that are this context's own."""
        size = len(self.batch["pair_id"])
        return jnp.arange(size) if self.full is None else self.full.rows(size)

    @property
    def same_pair_BB(self) -> jax.Array:
        """True where image and caption belong together: the diagonal, equal pictures, equal captions."""
        return jnp.any(self.pair_ids_B2[:, None] == self.pair_ids_B2[None, :], axis=-1)

    def image_side(self, view: str = "clean") -> Side:
        """An image view as the fusion reads it."""
        fusion = self.vlm.fusion
        visible = self.visible_patches if fusion.drops and view == "masked" else None
        return self._once(f"image_side/{view}", lambda: fusion.image_side(self.image(view), visible))

    def text_side(self, view: str = "clean") -> Side:
        """A text view as the fusion reads it."""
        fusion, valid_BL = self.vlm.fusion, self.batch["token_valid"]
        visible = self.visible_tokens if fusion.drops and view == "masked" else None
        return self._once(f"text_side/{view}", lambda: fusion.text_side(self.text(view), valid_BL, visible))

    def fused(self, image_view: str, text_view: str) -> Fused:
        """An image view and a text view, each in the light of the other."""
        keys = self.key(f"fuse_image/{image_view}/{text_view}"), self.key(f"fuse_text/{text_view}/{image_view}")
        return self._once(
            f"fused/{image_view}/{text_view}",
            lambda: self.vlm.fusion.fuse(self.image_side(image_view), self.text_side(text_view), keys),
        )

    def fuse_image(self, view: str, other: str = "clean", read_BR: jax.Array | None = None) -> jax.Array:
        """The image view, fused with the `other` view of the text, at positions `read_BR` of it, all if None."""
        with self._listened_to():
            return self.fused(view, other).image(read_BR)

    def fuse_text(self, view: str, other: str = "clean", read_BR: jax.Array | None = None) -> jax.Array:
        """The text view, fused with the `other` view of the image, at positions `read_BR` of it, all if None."""
        with self._listened_to():
            return self.fused(other, view).text(read_BR)

    def fuse_masked_patches(self, other: str = "clean") -> jax.Array:
        """fused_BMD at the masked patches, once for all objectives that read them."""
        read_BM = self.masked_patches.ids_BM + self.vlm.image_encoder.prefix
        return self._once(f"masked_patches/{other}", lambda: self.fuse_image("masked", other, read_BM))

    def fuse_masked_tokens(self, other: str = "clean") -> jax.Array:
        """fused_BMD at the masked tokens, once for all objectives that read them."""
        read_BM = self.masked_tokens.ids_BM
        return self._once(f"masked_tokens/{other}", lambda: self.fuse_text("masked", other, read_BM))

    def attention(self, layer: int = -1) -> Attention:
        """How words and patches of the clean views attend to each other in a layer of the fusion, see `Attention`."""
        return self._once(
            f"attention/{layer}", lambda: self.vlm.fusion.attention(self.image_side(), self.text_side(), layer)
        )

    def fuse_with_negatives(self, image_of_text_B: jax.Array, text_of_image_B: jax.Array, shares: int = 1) -> jax.Array:
        """pair_PD, three an example: the pair itself, its caption with another picture, its picture with another
        caption; the others are rows of the whole batch, of the example's own part of it where there are `shares`."""
        image, text = self._pair_sides()
        if self.full is None:
            other_image, other_text = image.gather(image_of_text_B, shares), text.gather(text_of_image_B, shares)
        else:  # they may be in another microbatch: encoded once more, with their gradient
            other_image = self.full.pair_image(self.vlm, image_of_text_B, shares, self.key)
            other_text = self.full.pair_text(self.vlm, text_of_image_B, shares, self.key)
        return self._match(
            PairSide.interleave([image, other_image, image]), PairSide.interleave([text, text, other_text])
        )

    @property
    def pair_PD(self) -> jax.Array:
        """The fused vector of each example's own picture and caption, both whole."""
        return self._once("pair", lambda: self._match(*self._pair_sides()))

    def _pair_sides(self) -> tuple[PairSide, PairSide]:
        image = self.vlm.fusion.pair_image(self.image_side(), self.key("start/image"))
        return image, self.vlm.fusion.pair_text(self.text_side(), self.key("start/text"))

    def _match(self, image: PairSide, text: PairSide) -> jax.Array:
        with self._listened_to():
            return self.vlm.fusion.match(image, text, (self.key("pairs/image"), self.key("pairs/text")))

    def ramp(self, start: float, stop: float) -> jax.Array | float:
        """0 before the share `start` of the training, 1 from the share `stop` on, a line between; (0, 0): 1 always."""
        if stop <= start:
            return jnp.asarray(self.progress >= start, jnp.float32)
        return jnp.clip((self.progress - start) / (stop - start), 0.0, 1.0)

    def replacing(self, name: str, arrays: Mapping[str, jax.Array]) -> "Context":
        """The same examples with a second picture, caption or both, in the place of the first; what is not replaced is
        encoded once for both. Of the replaced there is the clean view; of the batch as a whole there is the first's.

        Args:
            name: what dropout is drawn from.
            arrays: "image", or "tokens" and "token_valid", or all of them.
        """
        other = copy.copy(self)
        other.batch, other._key = {**self.batch, **arrays}, self.key(f"replacing/{name}")
        if "image" in arrays:
            other.batch.pop(FEATURES, None)
        kept = {"image", "text"} - {"text" if key in TEXT else key for key in arrays}
        other._cache = {modality: self._cache.setdefault(modality, {}) for modality in kept}
        other._views = {modality: self._views[modality] for modality in kept & self._views.keys()}
        other._teacher = None if self._teacher is None else self._teacher.replacing(name, arrays)
        return other

    def with_masks(self, masks: Mapping[str, jax.Array]) -> "Context":
        """The same clean views, of which other patches and words are hidden."""
        other = copy.copy(self)
        other.batch = {**self.batch, **masks}
        encoded = {name: self._cache.get(name, {}) for name in ("image", "text")}
        other._cache = {name: {"clean": views["clean"]} for name, views in encoded.items() if "clean" in views}
        return other

    @property
    def teacher(self) -> "Context":
        """The same batch over the moving average of the parameters (MAMO, ALBEF); nothing of it has a gradient."""
        if self._teacher is None:
            raise ValueError("there is no teacher: this model has no moving average")
        return self._teacher

    def teacher_head(self, objective: nnx.Module) -> nnx.Module:
        """An objective with the moving average's parameters."""
        return self._teacher_heads[id(objective)]

    def key(self, label: str) -> jax.Array | None:
        """The key of one use, or None where the context draws nothing."""
        return None if self._key is None else jax.random.fold_in(self._key, zlib.crc32(label.encode()))

    def _once(self, name: str, compute):
        if name not in self._cache:
            with self._listened_to():
                self._cache[name] = compute()
        return self._cache[name]

    def _encoded(self, modality: str, view: str, encode) -> jax.Array:
        cache = self._cache.setdefault(modality, {})
        if view not in cache:
            declared = self._views.get(modality, frozenset())
            views = sorted(declared | {view}) if view in declared else [view]
            with self._listened_to():
                cache |= dict(zip(views, encode(views), strict=True))
        return cache[view]

    def _listened_to(self) -> AbstractContextManager[Any]:
        """Where blocks run, whose values are kept out if this context is silent."""
        return auxiliary.collecting(wanted=False) if self._silent else nullcontext()

    def _encode_images(self, views: list[str]) -> list[jax.Array]:
        if FEATURES in self.batch and "clean" in views:
            return [self.batch[FEATURES] if view == "clean" else self._encode_images([view])[0] for view in views]
        image, masked, hidden_by = self.pixels_BYXC, self.batch["image_masked"], self.vlm.image_encoder.hidden
        key = self.key("image" + "".join(views))
        if hidden_by == "drop_in_fusion":
            return [self.vlm.encode_image(image, None, None, key)] * len(views)
        if (dropped := hidden_by in ("drop", "left_out")) and len(views) > 1:
            return [self._encode_images([view])[0] for view in views]
        hidden = None if views == ["clean"] else interleave([masked & (view == "masked") for view in views])
        visible = self.visible_patches if dropped and hidden is not None else None
        return separate(self.vlm.encode_image(interleave([image] * len(views)), hidden, visible, key), len(views))

    def _encode_texts(self, views: list[str]) -> list[jax.Array]:
        tokens = interleave([self.batch["tokens" if view == "clean" else "tokens_masked"] for view in views])
        valid = interleave([self.batch["token_valid"]] * len(views))
        return separate(self.vlm.text_encoder(tokens, valid, self.key("text" + "".join(views))), len(views))
