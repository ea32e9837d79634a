"""Text encoder: BERT / RoBERTa (Liu et al. 2019, arXiv 1907.11692)."""

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.attention import First
from maskvlm_jax.models.block import BlockSpec
from maskvlm_jax.models.layers import TOKEN_STD, LayerNorm, dropout, token_init
from maskvlm_jax.models.positions import waves
from maskvlm_jax.models.stack import Stack, layer_keys


class TextEncoder(nnx.Module):
    """Transformer over word and position embeddings; the papers' blocks are post-norm.

    Positions count from 0, and no token type is added; of an encoder that has either otherwise the positions take it in
    (`models.pretrained.families.bert`).

    With `init_std` 0 (training from scratch) the positions start from sines and cosines, see `models.positions`.

    Args:
        spec: of the blocks, whose `eps` is that of the other norms too.
        depth: blocks; with 0 the encoder is an embedding, for a single stream.
        mask_id: the number of the mask token, for what hides words or pictures by it; -1 is the last of the vocabulary.
    """

    def __init__(
        self, spec: BlockSpec, *, vocab_size: int, max_length: int, depth: int, rngs: nnx.Rngs, mask_id: int = -1
    ):
        width, norm = spec.width, {"eps": spec.eps, "dtype": spec.dtype}
        self.embedding = nnx.Param(token_init()(rngs.params(), (vocab_size, width), jnp.float32))
        position = token_init()(rngs.params(), (1, max_length, width), jnp.float32)
        if spec.init_std == 0:
            position = jnp.asarray(TOKEN_STD * waves(max_length, width)[None])  # as large as the words' embeddings
        self.position = nnx.Param(position)
        self.embedding_norm = LayerNorm(width, **norm)
        self.blocks = Stack(spec, depth, rngs=rngs)
        self.norm = LayerNorm(width, **norm) if spec.pre_norm and depth else None
        self.mask_id = mask_id
        self.width, self.dropout, self.dtype = width, spec.dropout, spec.dtype

    @property
    def mask_embedding(self) -> jax.Array:
        """(D,): the word embedding of the mask token."""
        return self.embedding[...][self.mask_id]

    def embed(self, tokens_BL: jax.Array) -> jax.Array:
        """x_BLD, words and positions: what the first block reads, but for dropout."""
        x_BLD = self.embedding[...][tokens_BL] + self.position[...][:, : tokens_BL.shape[1]]
        return self.embedding_norm(x_BLD.astype(self.dtype))

    @jax.named_scope("text_encoder")
    def __call__(self, tokens_BL: jax.Array, valid_BL: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Encodes token ids to text_BLD; padding (valid False) is attended by no position. `key` draws dropout.

        Padding stands at the end.
        """
        key, block_key = (None, None) if key is None else jax.random.split(key)
        x_BLD = dropout(self.embed(tokens_BL), self.dropout, key)
        keys = layer_keys(block_key, self.blocks.depth)
        valid = First.of(valid_BL)
        x_BLD = self.blocks.scan(lambda block, x, key: block(x, valid, key), x_BLD, keys)
        return x_BLD if self.norm is None else self.norm(x_BLD)
