"""A decoder of texts: each token from those before it and a memory (ALBEF's of answers, arXiv 2107.07651, Sec. 5)."""

import jax
import jax.numpy as jnp
from flax import nnx

from maskvlm_jax.models.attention import Valid, causal
from maskvlm_jax.models.block import BlockSpec
from maskvlm_jax.models.cross import CrossStack, Memory
from maskvlm_jax.models.primitives import Product, dense
from maskvlm_jax.models.text import TextEncoder


class TextDecoder(nnx.Module):
    """Cross blocks whose self-attention is causal, between the word embeddings of a text encoder.

    Words and positions are embedded as the text encoder does, and the vocabulary's logits are products with its word
    embeddings, so that of its own the decoder has its blocks and a bias.

    Args:
        encoder: whose embeddings are used.
        spec, depth: of the blocks.
    """

    def __init__(self, encoder: TextEncoder, spec: BlockSpec, *, depth: int, rngs: nnx.Rngs):
        self.stack = CrossStack(spec, depth=depth, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros((encoder.embedding.shape[0],), jnp.float32))

    def memory(self, context_BTD: jax.Array, valid_BT: Valid = None) -> Memory:
        """What every block reads of a sequence."""
        return self.stack.project(context_BTD, valid_BT)

    @jax.named_scope("text_decoder")
    def __call__(
        self, encoder: TextEncoder, tokens_BL: jax.Array, memory: Memory, key: jax.Array | None = None
    ) -> jax.Array:
        """logits_BLV float32: at each position those of the next token. `key` draws dropout."""
        x_BLD = self.stack(encoder.embed(tokens_BL), memory, causal(tokens_BL.shape[1]), key=key)
        flat, product = x_BLD.reshape(-1, x_BLD.shape[-1]), Product(x_BLD.dtype, "float32")
        logits = dense(flat, encoder.embedding[...].T, self.bias[...], product)
        return logits.reshape(*tokens_BL.shape, -1)


def log_likelihood(logits_BLV: jax.Array, tokens_BL: jax.Array, valid_BL: jax.Array) -> jax.Array:
    """loglik_B of texts: Σ_t log p(token t | those before it), the start token being given; in nats."""
    log_p_BLV = jax.nn.log_softmax(logits_BLV[:, :-1].astype(jnp.float32))
    found_BL = jnp.take_along_axis(log_p_BLV, tokens_BL[:, 1:, None], axis=2)[..., 0]
    return jnp.sum(jnp.where(valid_BL[:, 1:], found_BL, 0.0), axis=1)
