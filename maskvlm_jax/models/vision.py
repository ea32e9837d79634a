"""Image encoders: ViT, and the shallow embeddings of single-stream models."""

import itertools
from collections.abc import Iterator

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maskvlm_jax.models.activations import activate
from maskvlm_jax.models.attention import with_even_length
from maskvlm_jax.models.block import BlockSpec
from maskvlm_jax.models.layers import Dense, Dtype, LayerNorm, Positions, dropout, restore, take, token_init
from maskvlm_jax.models.positions import grid_waves
from maskvlm_jax.models.primitives import spread
from maskvlm_jax.models.stack import Stack, layer_keys
from maskvlm_jax.runtime.pixels import IMAGENET_MEAN, IMAGENET_STD


def normalised(image_BYXC: jax.Array) -> jax.Array:
    """8-bit RGB to (image / 255 - mean) / std of ImageNet, float32; floats pass: they are normalised already.

    Done on the device, so that a quarter of the bytes travels there.
    """
    if image_BYXC.dtype != jnp.uint8:
        return image_BYXC
    mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    scale, shift = (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
    return image_BYXC * scale + shift


def patchify(image_BYXC: jax.Array, patch: int) -> jax.Array:
    """Cuts (B, Y, X, 3) into (B, N, F): patches row by row, F = patch * patch * 3 as (row, column, channel)."""
    return einops.rearrange(image_BYXC, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(patch_BNF: jax.Array, patch: int) -> jax.Array:
    """Inverse of `patchify` for square images."""
    side = round(patch_BNF.shape[1] ** 0.5)
    return einops.rearrange(patch_BNF, "b (h w) (p q c) -> b (h p) (w q) c", h=side, p=patch, q=patch)


class PatchEmbedding(Dense):
    """One dense layer a patch, as ViT."""

    def __init__(self, patch: int, width: int, *, init_std: float, dtype: Dtype, rngs: nnx.Rngs):
        super().__init__(3 * patch**2, width, init_std=init_std, dtype=dtype, rngs=rngs)
        self.patch = patch

    def __call__(self, image_BYXC: jax.Array) -> jax.Array:
        return super().__call__(patchify(image_BYXC, self.patch))


class ConvEmbedding(nnx.Module):
    """A shallow CNN whose kernels are as large as their strides, 2 x 2 (MLIM, arXiv 2109.12178).

    Every pixel feeds exactly one output, so that hiding an output hides its pixels whole. Such a convolution is a dense
    layer over the four pixels of a cell, and is computed as one.

    Args:
        patch: a power of two; log2(patch) layers halve the picture, one more dense layer gives the width.
        channels: of the first layer, doubled from layer to layer up to eight times.
    """

    def __init__(self, patch: int, width: int, *, channels: int, init_std: float, dtype: Dtype, rngs: nnx.Rngs):
        sizes = [3] + [channels * min(2**i, 8) for i in range(patch.bit_length() - 1)]
        common = {"init_std": init_std, "dtype": dtype, "rngs": rngs}
        self.layers = nnx.List([Dense(4 * a, b, **common) for a, b in itertools.pairwise(sizes)])
        self.out = Dense(sizes[-1], width, **common)

    def __call__(self, image_BYXC: jax.Array) -> jax.Array:
        x_BYXC = image_BYXC
        for layer in self.layers:
            x_BYXC = einops.rearrange(x_BYXC, "b (h p) (w q) c -> b h w (p q c)", p=2, q=2)
            x_BYXC = activate(layer(x_BYXC), "gelu")
        return self.out(einops.rearrange(x_BYXC, "b h w c -> b (h w) c"))


class ConvDecoder(nnx.Module):
    """Vectors of patches to their pixels by transposed 2 x 2 convolutions, the mirror image of `ConvEmbedding`.

    Args:
        patch: a power of two; log2(patch) layers double the picture, one more dense layer gives the colours.
        channels: of the last layers, doubled from layer to layer towards the first up to eight times.
    """

    def __init__(self, patch: int, width: int, *, channels: int, init_std: float, dtype: Dtype, rngs: nnx.Rngs):
        count = patch.bit_length() - 1
        sizes = [width] + [channels * min(2 ** (count - 1 - i), 8) for i in range(count)]
        common = {"init_std": init_std, "dtype": dtype, "rngs": rngs}
        self.layers = nnx.List([Dense(a, 4 * b, **common) for a, b in itertools.pairwise(sizes)])
        self.out = Dense(sizes[-1], 3, **common)

    def __call__(self, x_BND: jax.Array) -> jax.Array:
        """(B, N, F): pixels of each patch, not bounded."""
        x = x_BND[:, :, None, None]
        for layer in self.layers:
            x = activate(layer(x), "gelu")
            x = einops.rearrange(x, "b n h w (p q c) -> b n (h p) (w q) c", p=2, q=2)
        return einops.rearrange(self.out(x), "b n h w c -> b n (h w c)")


class ImageEncoder(nnx.Module):
    """ViT with learned positions (Dosovitskiy et al. 2021, arXiv 2010.11929); the paper's blocks are pre-norm.

    The sequence is [class token, distillation token, registers | patches]; before the patches stand `prefix` positions.
    With `init_std` 0 (training from scratch) the positions start from sines and cosines, see `models.positions`.

    Args:
        spec: of the blocks, whose `eps` is that of the last norm too.
        image_size, patch: pixels.
        embedding: "patch" (ViT) or "conv" (MLIM); `channels` are those of `ConvEmbedding`.
        depth: blocks; with 0 the encoder is an embedding, for a single stream.
        class_token: begin the sequence with a learned token.
        distillation_token: and go on with another, which a custom loss may read at position 1 (DeiT, arXiv
            2012.12877).
        registers: so many learned tokens without a position follow, where blocks keep what belongs to no patch
            (DINOv2, arXiv 2309.16588).
        norm_before: a layer norm before the blocks (CLIP, arXiv 2103.00020).
        hidden: how a hidden patch is kept from the blocks. "token": a learned token takes its embedding's place
            (SimMIM, arXiv 2111.09886). "pixel": a learned colour takes the place of its pixels (FastMIM, arXiv
            2212.06593). "drop": only the visible patches are encoded, and the token stands at the hidden ones' places
            in the output (MAE, arXiv 2111.06377). "left_out": likewise, but hidden ones have no place in the output;
            the fusion's decoder gives them one. "drop_in_fusion": not here; the fusion drops it. "none": no picture is
            masked.
        mask_token: own that token or colour; otherwise the token is given in the call.
    """

    def __init__(
        self,
        spec: BlockSpec,
        *,
        image_size: int,
        patch: int,
        depth: int,
        rngs: nnx.Rngs,
        embedding: str = "patch",
        channels: int = 32,
        class_token: bool = True,
        distillation_token: bool = False,
        registers: int = 0,
        norm_before: bool = False,
        hidden: str = "token",
        mask_token: bool = True,
    ):
        width, patches = spec.width, (image_size // patch) ** 2
        common = {"init_std": spec.init_std, "dtype": spec.dtype}
        if embedding == "conv":
            self.patch_embedding = ConvEmbedding(patch, width, channels=channels, **common, rngs=rngs)
        else:
            self.patch_embedding = PatchEmbedding(patch, width, **common, rngs=rngs)

        def tokens(count: int, width: int = width) -> nnx.Param | None:
            return nnx.Param(token_init()(rngs.params(), (1, int(count), width), jnp.float32)) if count else None

        self.class_token = tokens(class_token)
        self.mask_token = tokens(mask_token and hidden in ("token", "pixel", "drop"), 3 if hidden == "pixel" else width)
        self.distillation_token, self.register_tokens = tokens(distillation_token), tokens(registers)
        self._placed = class_token + distillation_token  # tokens that have a position
        position = token_init()(rngs.params(), (1, self._placed + patches, width), jnp.float32)
        if spec.init_std == 0:
            # Of the size of the pixel embeddings that they are added to.
            position = position.at[0, self._placed :].set(0.5**0.5 * grid_waves(image_size // patch, width))
        self.position = nnx.Param(position)
        norm = {"eps": spec.eps, "dtype": spec.dtype}
        self.norm_before = LayerNorm(width, **norm) if norm_before else None
        self.blocks = Stack(spec, depth, rngs=rngs)
        self.norm = LayerNorm(width, **norm) if spec.pre_norm else None
        self.patch, self.patches, self.width, self.dropout = patch, patches, width, spec.dropout
        self.hidden, self.prefix, self.heads = hidden, self._placed + registers, spec.heads

    @jax.named_scope("image_encoder")
    def __call__(
        self,
        image_BYXC: jax.Array,
        masked_BN: jax.Array | None = None,
        visible: Positions | None = None,
        key: jax.Array | None = None,
        *,
        mask_token: jax.Array | None = None,
    ) -> jax.Array:
        """Encodes images.

        Args:
            image_BYXC: normalised pixels.
            masked_BN: True = none of the patch's pixels is seen by another position; None = nothing is hidden.
            visible: the patches that are not hidden; read where `hidden` is "drop" or "left_out".
            key: draws dropout; None = none.
            mask_token: (D,), where the encoder owns none.
        Returns:
            image_BSD with S = prefix + N, of a masked picture whose hidden patches are left out prefix + U.
        """
        if masked_BN is not None and self.hidden == "none":
            raise ValueError("this encoder hides no patch: model.image.hidden is none")
        key, block_key = (None, None) if key is None else jax.random.split(key)
        x_BND = self.patch_embedding(image_BYXC)
        token = self.mask_token[...] if mask_token is None and self.mask_token is not None else mask_token
        if self.hidden == "pixel" and masked_BN is not None:
            # A patch is embedded by itself: of one colour it is the same vector wherever it is hidden.
            token = self.patch_embedding(spread(token, (1, self.patch, self.patch, 3), token.dtype))
        drop = masked_BN is not None and self.hidden in ("drop", "left_out")
        if masked_BN is not None and self.hidden in ("token", "pixel"):
            x_BND = jnp.where(masked_BN[:, :, None], spread(token, x_BND.shape, x_BND.dtype), x_BND)
        position = self.position[...]
        patch_BND = spread(position[:, self._placed :], x_BND.shape, x_BND.dtype)
        x_BSD = x_BND + patch_BND
        if drop:
            x_BSD = take(x_BSD, visible.ids_BM)
        x_BSD = self._with_first(x_BSD)
        x_BSD = dropout(x_BSD, self.dropout, key)
        keys = layer_keys(block_key, self.blocks.depth)
        length = x_BSD.shape[1]
        x_BSD, valid = with_even_length(x_BSD, self.heads)
        x_BSD = self.blocks.scan(lambda block, x, key: block(x, valid, key), x_BSD, keys)
        x_BSD = x_BSD[:, :length]
        x_BSD = x_BSD if self.norm is None else self.norm(x_BSD)
        if drop and self.hidden == "drop":
            slots_BND = restore(x_BSD[:, self.prefix :], visible, self.patches, token)
            hidden_BND = jnp.where(masked_BN[:, :, None], slots_BND + patch_BND, slots_BND)
            x_BSD = jnp.concatenate([x_BSD[:, : self.prefix], hidden_BND], axis=1)
        return x_BSD

    @jax.named_scope("image_encoder")
    def probed(self, image_BYXC: jax.Array, layer: int, added_BHN: jax.Array) -> tuple[jax.Array, jax.Array]:
        """image_BSD of whole pictures, and how much the class token attends to each patch in one layer, weights_BHN.

        Args:
            layer: counted from 0.
            added_BHN: is added to these weights: zeros, by which what follows can be differentiated.
        """
        x_BND = self.patch_embedding(image_BYXC)
        x_BSD = self._with_first(x_BND + spread(self.position[...][:, self._placed :], x_BND.shape, x_BND.dtype))
        run = lambda block, x, _: block(x)  # noqa: E731
        x_BSD = self.blocks.scan(run, x_BSD, stop=layer)
        weights_BHSS = self.blocks.layer(layer).attention_weights(x_BSD)
        around = ((0, 0), (0, 0), (0, x_BSD.shape[1] - 1), (self.prefix, 0))
        probe = lambda block, x, added: block(x, added_BHRS=added)  # noqa: E731
        x_BSD = self.blocks.once(layer, probe, x_BSD, jnp.pad(added_BHN[:, :, None], around))
        x_BSD = self.blocks.scan(run, x_BSD, start=layer + 1)
        return x_BSD if self.norm is None else self.norm(x_BSD), weights_BHSS[:, :, 0, self.prefix :]

    def _with_first(self, x_BSD: jax.Array) -> jax.Array:
        """The sequence that the blocks read, of embedded patches."""
        x_BSD = jnp.concatenate([*self._first(x_BSD), x_BSD], axis=1) if self.prefix else x_BSD
        return x_BSD if self.norm_before is None else self.norm_before(x_BSD)

    def _first(self, x_BSD: jax.Array) -> Iterator[jax.Array]:
        """The positions before the first patch, for every picture of x: class, distillation and register tokens."""
        owned = (token for token in (self.class_token, self.distillation_token) if token is not None)
        tokens = [token[...] + self.position[...][:, i : i + 1] for i, token in enumerate(owned)]
        tokens += [] if self.register_tokens is None else [self.register_tokens[...]]
        for token_1SD in tokens:
            yield spread(token_1SD, (x_BSD.shape[0], *token_1SD.shape[1:]), x_BSD.dtype)
