"""Attention maps of the fusion are the weights by which its blocks attend."""

import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.models.fusion import layer_number
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.training.build import model_arguments
from tests.conftest import toy_config
from tests.models.test_joint import SIZES, batch_for
from tests.reference import toy

DEPTH = 3
RECIPES = ("maskvlm", "albef", "mamo", "mlim", "m3ae")


@pytest.fixture(scope="module", params=RECIPES)
def contexts(request):
    config = toy_config(f"recipe={request.param}", **SIZES)
    config.model.fusion.depth = DEPTH
    learner = toy.randomised(lambda: Learner(**model_arguments(config), rngs=nnx.Rngs(0)))
    return request.param, learner.context(batch_for(learner))


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def weights(attention, x_SD, context_TD, valid_T):
    """weights_HST of one example, head by head."""
    query, key = (
        np.asarray(x) @ np.asarray(dense.kernel[...]) + np.asarray(dense.bias[...])
        for x, dense in ((x_SD, attention.query), (context_TD, attention.key))
    )
    size = query.shape[1] // attention.heads
    heads = [slice(h * size, (h + 1) * size) for h in range(attention.heads)]
    logits = np.stack([query[:, h] @ key[:, h].T / np.sqrt(size) for h in heads])
    return softmax(np.where(valid_T, logits, -np.inf))


def plain(ctx, layer):
    """text_BHLN and image_BHNL, a layer after the other."""
    fusion, image, text = ctx.vlm.fusion, np.asarray(ctx.image_side().sequence_BSD), ctx.text_side().sequence_BSD
    valid, text = np.asarray(ctx.batch["token_valid"]), np.asarray(text)
    if hasattr(fusion, "encoder"):
        joint, real = np.concatenate([text, image], 1), np.concatenate([valid, np.ones(image.shape[:2], bool)], 1)
        for i in range(layer):
            joint = np.asarray(fusion.encoder.blocks.layer(i)(joint, real))
        block = fusion.encoder.blocks.layer(layer)
        before = np.asarray(block.norm1(joint)) if block.pre else joint
        found = np.stack([weights(block.attention, x, x, v) for x, v in zip(before, real, strict=True)])
        return found[:, :, : text.shape[1], text.shape[1] :], found[:, :, text.shape[1] :, : text.shape[1]]

    def stream(stack, x, x_valid, context, context_valid):
        for i in range(layer + 1):
            block = stack.blocks.layer(i)
            x = np.asarray(block.attend_self(x, x_valid))
            if i < layer:
                x = np.asarray(block.attend_memory(x, *block.cross_attention.project(context), context_valid))
        before = np.asarray(block.norm2(x)) if block.pre else x
        return np.stack(
            [weights(block.cross_attention, *one) for one in zip(before, context, context_valid, strict=True)]
        )

    whole = np.ones(image.shape[:2], bool)
    of_text = stream(fusion.text_stream, text, valid, image, whole)[..., fusion.prefix :]
    if fusion.image_stream is None:
        return of_text, None
    return of_text, stream(fusion.image_stream, image, whole, text, valid)[:, :, fusion.prefix :]


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_they_are_the_weights_of_that_layer(contexts, layer):
    recipe, ctx = contexts
    depth = ctx.vlm.fusion.text_stream.depth if recipe in ("maskvlm", "albef") else ctx.vlm.fusion.encoder.blocks.depth
    text_BHLN, image_BHNL = plain(ctx, range(depth)[layer])
    found, valid = ctx.attention(layer), ctx.batch["token_valid"]
    kept = np.broadcast_to(valid[:, None, :, None], text_BHLN.shape)
    np.testing.assert_allclose(np.asarray(found.text_BHLN)[kept], text_BHLN[kept], rtol=2e-4, atol=1e-6)
    if recipe == "albef":
        assert found.image_BHNL is None
        return
    np.testing.assert_allclose(found.image_BHNL, image_BHNL, rtol=2e-4, atol=1e-6)
    assert not np.any(np.asarray(found.image_BHNL) * ~valid[:, None, None]), "padding is not attended to"


def test_layers_are_counted_from_either_end():
    assert [layer_number(layer, 3) for layer in (0, 2, 7, -1, -3, -9)] == [0, 2, 2, 2, 0, 0]
