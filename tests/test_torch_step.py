"""Our step and the one in PyTorch that it is timed against do the same work: losses and gradients agree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import shapes, train_step
from maskvlm_jax.objectives import matching
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.training import build
from maskvlm_jax.training.train_step import split_model
from tests.reference import toy

torch = pytest.importorskip("torch")

from benchmarks import torch_step  # noqa: E402

torch.set_num_threads(1)  # beside XLA's own threads

SMALLER = {"width": 48, "heads": 3, "image_depth": 2, "text_depth": 2, "vocab": 64, "embed": 16, "batch_size": 6}
SHAPES = {
    "torch-tiny": dataclasses.replace(shapes.SHAPES["torch-tiny"], image_size=32, length=12, **SMALLER),
    "torch-small": dataclasses.replace(shapes.SHAPES["torch-small"], image_size=64, length=14, **SMALLER),
}


def hardest(key, similarity_BB, same_pair_BB, *args, **kwargs):
    """Takes the place of the draw: the most similar column of each row that is another pair."""
    return jnp.argmax(jnp.where(same_pair_BB, -jnp.inf, similarity_BB), axis=1), jnp.any(~same_pair_BB, axis=1)


def to_torch(params: dict[str, np.ndarray], shape: shapes.Shape) -> dict[str, np.ndarray]:
    """Our parameters, or their gradients, by their names in `torch_step.MaskVLM`."""
    result = {}

    def dense(name: str, *paths: str, layer: int | None = None) -> None:
        parts = [[params[f"{path}/{leaf}"] for path in paths] for leaf in ("kernel", "bias")]
        kernel, bias = (np.concatenate([x if layer is None else x[layer] for x in part], axis=-1) for part in parts)
        result.update({f"{name}.weight": kernel.T, f"{name}.bias": bias})

    def norm(name: str, path: str, layer: int | None = None) -> None:
        for theirs, ours in (("weight", "scale"), ("bias", "bias")):
            value = params[f"{path}/{ours}"]
            result[f"{name}.{theirs}"] = value if layer is None else value[layer]

    def blocks(name: str, path: str, depth: int, attentions: dict[str, str]) -> None:
        for i in range(depth):
            block, own = f"{name}.blocks.{i}", f"{path}/blocks/block"
            for theirs, ours in attentions.items():
                dense(f"{block}.{theirs}.query", f"{own}/{ours}/query", layer=i)
                dense(f"{block}.{theirs}.key_value", f"{own}/{ours}/key", f"{own}/{ours}/value", layer=i)
                dense(f"{block}.{theirs}.out", f"{own}/{ours}/out", layer=i)
            dense(f"{block}.feed_forward.0", f"{own}/feed_forward/up", layer=i)
            dense(f"{block}.feed_forward.2", f"{own}/feed_forward/down", layer=i)
            for j in range(1 + len(attentions)):
                norm(f"{block}.norms.{j}", f"{own}/norm{j + 1}", layer=i)

    encoder = {"attention": "attention"}
    cross = {"attention": "self_attention", "cross_attention": "cross_attention"}
    image, text, pixels = "vlm/image_encoder", "vlm/text_encoder", "objectives/masked_image"
    blocks("image_encoder", image, shape.image_depth, encoder)
    blocks("text_encoder", text, shape.text_depth, encoder)
    blocks("image_stream", "vlm/fusion/image_stream", shape.cross_depth, cross)
    blocks("text_stream", "vlm/fusion/text_stream", shape.cross_depth, cross)
    blocks("decoder", f"{pixels}/decoder", shape.decoder_depth, cross)
    norm("image_encoder.norm", f"{image}/norm")
    norm("text_encoder.norm", f"{text}/embedding_norm")
    result["text_encoder.words.weight"] = params[f"{text}/embedding"]
    for name in ("image_encoder.class_token", "image_encoder.mask_token", "image_encoder.position"):
        result[name] = params["vlm/" + name.replace(".", "/")]
    result["text_encoder.position"], result["temperature"] = params[f"{text}/position"], params["vlm/temperature"]
    dense("image_projection", "vlm/image_projection")
    dense("text_projection", "vlm/text_projection")
    dense("to_pixels", f"{pixels}/to_pixels")
    dense("to_words", "objectives/masked_text/to_words")
    dense("to_match", "objectives/matching/to_match")
    kernel, bias = (params[f"{image}/patch_embedding/{leaf}"] for leaf in ("kernel", "bias"))
    return result | of_pixels(kernel, bias, {name: result[f"to_pixels.{name}"] for name in ("weight", "bias")}, shape)


def of_pixels(
    kernel: np.ndarray, bias: np.ndarray, to_pixels: dict[str, np.ndarray], shape: shapes.Shape
) -> dict[str, np.ndarray]:
    """Pixels of a patch are (row, column, channel) here and (channel, row, column) there."""
    side = (shape.patch, shape.patch, 3)
    patches = kernel.reshape(*side, shape.width).transpose(3, 2, 0, 1)
    result = {"image_encoder.patches.weight": patches, "image_encoder.patches.bias": bias}
    for name, value in to_pixels.items():
        result[f"to_pixels.{name}"] = value.reshape(*side, -1).transpose(2, 0, 1, 3).reshape(value.shape)
    return result


@pytest.mark.parametrize("name", SHAPES)
def test_losses_and_gradients_agree_with_pytorch(name, monkeypatch):
    monkeypatch.setattr(matching, "sample_hard_negatives", hardest)
    shape = SHAPES[name]
    config = train_step.shape_config(name)
    config.update_from_flattened_dict(shape.settings())
    model = toy.randomised(lambda: Learner(**build.model_arguments(config), rngs=nnx.Rngs(0)))
    graphdef, params = split_model(model)
    params["vlm"]["temperature"] = jnp.float32(
        0.2
    )  # inside its range: at the ends the gradients of clamp and clip differ
    batch = train_step.synthetic_batch(config)

    @jax.jit
    def ours(params, batch):
        def loss(params):
            return nnx.merge(graphdef, params)(batch, jax.random.key(0))[:2]

        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
        image_BE, text_BE = nnx.merge(graphdef, params).embeddings(batch)
        return metrics, grads, image_BE @ text_BE.T

    metrics, grads, similarity_BB = jax.device_get(ours(params, batch))
    similarity_BB = similarity_BB - np.where(np.eye(len(similarity_BB)), np.inf, 0)
    negatives = similarity_BB.argmax(axis=0), similarity_BB.argmax(axis=1)

    theirs = torch_step.MaskVLM(shape)
    weights = to_torch(toy.by_path(params), shape)
    theirs.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    losses = theirs(torch_step.to_torch(batch), tuple(map(torch.from_numpy, negatives)))
    for loss, value in losses.items():
        assert metrics[f"{loss}/loss"] == pytest.approx(value.item(), abs=1e-4), loss

    sum(losses.values()).backward()
    gradients = to_torch(toy.by_path(grads), shape)
    for name, p in theirs.named_parameters():
        expected = p.grad.numpy()
        tolerance = 1e-4 * np.abs(expected).max() + 1e-6
        np.testing.assert_allclose(gradients[name], expected, rtol=1e-3, atol=tolerance, err_msg=name)
