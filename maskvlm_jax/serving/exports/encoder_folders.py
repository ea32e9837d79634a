"""Encoders as the folders that transformers reads: `ViTModel` and `BertModel`.

What these cannot be is told, not approximated. Names are those of the tables that such folders are read by.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from maskvlm_jax.models.pretrained.families import base, bert, vit
from maskvlm_jax.runtime.pixels import IMAGENET_MEAN, IMAGENET_STD

_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}
Values = Mapping[str, Any]


class Folder(NamedTuple):
    """What a folder of transformers holds: its config.json and its arrays."""

    config: dict[str, Any]
    arrays: dict[str, np.ndarray]


def image_differs(image: Values) -> str:
    """What keeps an image encoder from being a `ViTModel`; "" if nothing does.

    Args:
        image: `config.model.image`.
    """
    differences = {
        "it has no blocks": not image["depth"],
        "it embeds patches by convolutions": image.get("embedding", "patch") != "patch",
        f"its blocks are of kind {image['kind']}": image["kind"] != "dense",
        "its norms stand behind its blocks": image["norm"] != "pre",
        "it has no class token": not image["class_token"],
        "it has a distillation token": image["distillation_token"],
        "it has register tokens": image["registers"],
        "it has a norm before its blocks": image["norm_before"],
    }
    return next((text for text, differs in differences.items() if differs), "")


def text_differs(text: Values) -> str:
    """What keeps a text encoder from being a `BertModel`; "" if nothing does.

    Args:
        text: `config.model.text`.
    """
    differences = {
        "it has no blocks": not text["depth"],
        f"its blocks are of kind {text['kind']}": text["kind"] != "dense",
        "its norms stand before its blocks": text["norm"] != "post",
    }
    return next((text for text, differs in differences.items() if differs), "")


def image_folder(image: Values, params: Mapping[str, np.ndarray]) -> Folder:
    """A `ViTModel`, without a pooler.

    Args:
        image: `config.model.image`, of which `image_differs` has nothing to say.
        params: of the encoder, by path.
    """
    names = base.Names(vit.EMBEDDING_AND_ATTENTION | vit.FEED_FORWARD, vit.NORMS, vit.ARRAYS)
    arrays, patch = _arrays(names, params), image["patch"]
    weight = f"{vit.EMBEDDING_AND_ATTENTION['patch_embedding']}.weight"
    # Rows of a patch in the order (row, column, channel), as a convolution over channels, rows and columns.
    arrays[weight] = np.ascontiguousarray(arrays[weight].reshape(-1, patch, patch, 3).transpose(0, 3, 1, 2))
    config = _common(image, "ViTModel", "vit") | {
        "image_size": image["image_size"],
        "patch_size": patch,
        "num_channels": 3,
        "qkv_bias": True,
    }
    return Folder(config, arrays)


def text_folder(text: Values, params: Mapping[str, np.ndarray], pad_id: int) -> Folder:
    """A `BertModel`, without a pooler; its token types are zeros.

    Args:
        text: `config.model.text`, of which `text_differs` has nothing to say.
        params: of the encoder, by path.
        pad_id: the number of the padding token.
    """
    norms = dict(zip(("norm1", "norm2"), bert.NORMS, strict=True))
    names = base.Names(
        base.blocks(bert.LAYER, bert.BERT),
        base.blocks(bert.LAYER, norms) | {"embedding_norm": "embeddings.LayerNorm"},
        bert.ARRAYS,
    )
    arrays = _arrays(names, params)
    position = bert.ARRAYS["position"]
    arrays[position] = arrays[position][0]
    arrays[bert.TOKEN_TYPES] = np.zeros((2, text["width"]), np.float32)
    config = _common(text, "BertModel", "bert") | {
        "vocab_size": text["vocab_size"],
        "max_position_embeddings": text["max_length"],
        "type_vocab_size": 2,
        "pad_token_id": pad_id,
    }
    return Folder(config, arrays)


def preprocessor(image: Values) -> dict[str, Any]:
    """preprocessor_config.json: the whole picture squeezed to a square, ImageNet's mean and deviation."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": image["image_size"], "width": image["image_size"]},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
    }


def _common(block: Values, architecture: str, model_type: str) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": block["width"],
        "num_hidden_layers": block["depth"],
        "num_attention_heads": block["heads"],
        "intermediate_size": block["width"] * block["mlp_ratio"],
        "hidden_act": _ACTIVATIONS[block["activation"]],
        "layer_norm_eps": block["eps"],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "dtype": "float32",
    }


def _arrays(names: base.Names, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a table of names; what `Family.parameters` does, the other way round."""
    rows: list[tuple[str, np.ndarray]] = []
    for ours, theirs in names.dense.items():
        rows.append((f"{theirs}.weight", np.swapaxes(params[f"{ours}/kernel"], -1, -2)))
        rows.append((f"{theirs}.bias", params[f"{ours}/bias"]))
    for ours, theirs in names.norms.items():
        rows += [(f"{theirs}.weight", params[f"{ours}/scale"]), (f"{theirs}.bias", params[f"{ours}/bias"])]
    rows += [(theirs, params[ours]) for ours, theirs in names.arrays.items()]
    found: dict[str, np.ndarray] = {}
    for name, value in rows:
        layers = enumerate(value) if "{}" in name else [(0, value)]
        found |= {name.format(layer): np.ascontiguousarray(one) for layer, one in layers}
    return found
