"""A model's encoders and matching as programs that run without this project: StableHLO with a batch of any size.

    weights = safetensors.numpy.load_file("model.safetensors")
    program = jax.export.deserialize(Path("encode_images.stablehlo").read_bytes())
    program.call(weights, pixels)

They hold no weights, run on CPUs, NVIDIA's GPUs and TPUs, and are made to be served: JAX promises to read them for six
months. What is to be kept is model.safetensors.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export as jax_export
from ml_collections import ConfigDict

from maskvlm_jax.models.vision import normalised
from maskvlm_jax.objectives import base
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime import files
from maskvlm_jax.settings import rules
from maskvlm_jax.training import array_names, build, train_step

PLATFORMS = ("cpu", "cuda", "tpu")


def write(config: ConfigDict, arrays: Mapping[str, Any], folder: Path) -> list[str]:
    """Writes a program for each thing that the model can do; returns a line about each.

    Args:
        arrays: of model.safetensors.
    """
    told = []
    shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in arrays.items()}
    for name, function, inputs in _programs(config):
        exported = jax_export.export(jax.jit(function), platforms=PLATFORMS)(shapes, *inputs)
        files.write_bytes(folder / f"{name}.stablehlo", exported.serialize())
        told.append(f"{name + '.stablehlo':<24}{' '.join(map(str, exported.in_avals[len(shapes) :]))}")
    return told


def _programs(config: ConfigDict) -> Iterator[tuple[str, Callable[..., jax.Array], tuple[Any, ...]]]:
    """(name, function(weights, *inputs), shapes of the inputs) of each program."""
    config = config.copy_and_resolve_references()
    config.model.shared.dtype = "float32"
    graphdef, params = train_step.split_model(
        nnx.eval_shape(lambda: Learner(**build.model_arguments(config), rngs=nnx.Rngs(0)))
    )

    def model(weights: Mapping[str, jax.Array]) -> Learner:
        return nnx.merge(graphdef, array_names.of_names(weights, params, "the weights", jnp.stack))

    def encode_images(weights, image_BYXC):
        vlm = model(weights).vlm
        return vlm.embed_image(vlm.encode_image(normalised(image_BYXC)))

    def encode_texts(weights, tokens_BL, valid_BL):
        vlm = model(weights).vlm
        return vlm.embed_text(vlm.text_encoder(tokens_BL, valid_BL), valid_BL)

    def match(weights, image_BYXC, tokens_BL, valid_BL):
        learner = model(weights)
        fusion = learner.vlm.fusion
        image = fusion.image_side(learner.vlm.encode_image(normalised(image_BYXC)))
        text = fusion.text_side(learner.vlm.text_encoder(tokens_BL, valid_BL), valid_BL)
        pair_PD = fusion.match(fusion.pair_image(image), fusion.pair_text(text))
        return learner.offering(base.ScoresPairs).log_odds(pair_PD)

    (batch,) = jax_export.symbolic_shape("b")
    side, length = config.model.image.image_size, config.model.text.max_length
    image = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8)
    text = tuple(jax.ShapeDtypeStruct((batch, length), dtype) for dtype in (jnp.int32, jnp.bool_))
    active = rules.active_objectives(config)
    if base.objective_of(active, base.TrainsEmbeddings) is not None:
        yield "encode_images", encode_images, (image,)
        yield "encode_texts", encode_texts, text
    if base.objective_of(active, base.ScoresPairs) is not None:
        yield "match", match, (image, *text)
