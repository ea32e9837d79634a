"""Text encoder: BERT / RoBERTa (Liu et al. 2019, arXiv 1907.11692)."""

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.layers import TOKEN_STD, Block, Dtype, LayerNorm, dropout, token_init
from maskvlm_jax.models.positions import waves
from maskvlm_jax.models.primitives import First
from maskvlm_jax.models.stack import Stack, layer_keys


class TextEncoder(nnx.Module):
    """Post-norm Transformer over word and position embeddings.

    Differs from the release of RoBERTa: positions count from 0 (its table starts at 2), and the constant embedding of
    the single token type, which it adds at every position, is left out.

    With `init_std` 0 (training from scratch) the positions start from sines and cosines, see `models.positions`.

    Args:
        depth: blocks; with 0 the encoder is an embedding, for a single stream.
        mask_id: the mask token, where pictures share it.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        max_length: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: int,
        norm: str,
        dropout: float,
        init_std: float,
        remat: str,
        unroll: bool,
        dtype: Dtype,
        rngs: nnx.Rngs,
        mask_id: int = -1,
    ):
        self.embedding = nnx.Param(token_init()(rngs.params(), (vocab_size, width), jnp.float32))
        position = token_init()(rngs.params(), (1, max_length, width), jnp.float32)
        if init_std == 0:
            position = jnp.asarray(TOKEN_STD * waves(max_length, width)[None])  # as large as the words' embeddings
        self.position = nnx.Param(position)
        self.embedding_norm = LayerNorm(width, eps=1e-5, dtype=dtype)
        block = {
            "heads": heads,
            "mlp_ratio": mlp_ratio,
            "norm": norm,
            "eps": 1e-5,
            "dropout": dropout,
            "init_std": init_std,
            "dtype": dtype,
        }
        self.blocks = Stack(lambda rngs: Block(width, **block, rngs=rngs), depth, remat=remat, unroll=unroll, rngs=rngs)
        self.norm = LayerNorm(width, eps=1e-5, dtype=dtype) if norm == "pre" and depth else None
        self.mask_id = mask_id
        self.width, self.dropout, self.dtype = width, dropout, dtype

    @property
    def mask_embedding(self) -> jax.Array:
        """(D,): the word embedding of the mask token."""
        return self.embedding[...][self.mask_id]

    @jax.named_scope("text_encoder")
    def __call__(self, tokens_BL: jax.Array, valid_BL: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Encodes token ids to text_BLD; padding (valid False) is attended by no position. `key` draws dropout.

        Padding stands at the end.
        """
        key, block_key = (None, None) if key is None else jax.random.split(key)
        length = tokens_BL.shape[1]
        x_BLD = (self.embedding[...][tokens_BL] + self.position[...][:, :length]).astype(self.dtype)
        x_BLD = dropout(self.embedding_norm(x_BLD), self.dropout, key)
        keys = layer_keys(block_key, self.blocks.depth)
        valid = First.of(valid_BL)
        x_BLD = self.blocks.scan(lambda block, x, key: block(x, valid, key), x_BLD, keys)
        return x_BLD if self.norm is None else self.norm(x_BLD)
