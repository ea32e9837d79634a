"""Two streams that read each other, one example at a time in float64, from the equations of arXiv 2209.07098.

Parameters are nested dicts of arrays; those of blocks have no axis of layers here.
"""

import math
from typing import NamedTuple

import numpy as np

from tests.reference.numpy_losses import softmax

Parameters = dict


class Kind(NamedTuple):
    """What blocks are: heads, norm before or behind, and the constant of the norms."""

    heads: int
    pre: bool
    eps: float = 1e-5


def dense(p: Parameters, x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.float64) @ np.asarray(p["kernel"], np.float64) + p["bias"]


def norm(p: Parameters | None, x: np.ndarray, eps: float) -> np.ndarray:
    """Layer norm; without parameters of scale 1 and shift 0."""
    unit = np.stack([(row - row.mean()) / math.sqrt(row.var() + eps) for row in x])
    return unit if p is None else unit * p["scale"] + p["bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.ravel()]).reshape(x.shape)


def quick_gelu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-1.702 * x))


def attention_weights(p: Parameters, x: np.ndarray, y: np.ndarray, real: int, heads: int) -> np.ndarray:
    """(heads, positions of x, positions of y); of y the first `real` count."""
    query, key = dense(p["query"], x), dense(p["key"], y)
    size = query.shape[1] // heads
    weights = np.zeros((heads, len(x), len(y)))
    for h in range(heads):
        own = slice(h * size, (h + 1) * size)
        for i in range(len(x)):
            weights[h, i, :real] = softmax(key[:real, own] @ query[i, own] / math.sqrt(size))
    return weights


def attention(p: Parameters, x: np.ndarray, y: np.ndarray, real: int, heads: int) -> np.ndarray:
    weights, value = attention_weights(p, x, y, real, heads), dense(p["value"], y)
    size = value.shape[1] // heads
    parts = [weights[h] @ value[:, h * size : (h + 1) * size] for h in range(heads)]
    return dense(p["out"], np.concatenate(parts, axis=1))


def feed_forward(p: Parameters, x: np.ndarray, activation=gelu) -> np.ndarray:
    return dense(p["down"], activation(dense(p["up"], x)))


def sub_block(p: Parameters, x: np.ndarray, part, kind: Kind) -> np.ndarray:
    """x and part of x, with the norm where the kind has it."""
    return x + part(norm(p, x, kind.eps)) if kind.pre else norm(p, x + part(x), kind.eps)


def co_block(p: Parameters, x: np.ndarray, y: np.ndarray, real_x: int, real_y: int, kind: Kind) -> np.ndarray:
    """One layer of a stream x over the other stream's input y of the same layer."""
    memory = norm(None, y, kind.eps) if kind.pre else y
    x = sub_block(p["norm1"], x, lambda x: attention(p["self_attention"], x, x, real_x, kind.heads), kind)
    x = sub_block(p["norm2"], x, lambda x: attention(p["cross_attention"], x, memory, real_y, kind.heads), kind)
    return sub_block(p["norm3"], x, lambda x: feed_forward(p["feed_forward"], x), kind)


def co_weights(p: Parameters, x: np.ndarray, y: np.ndarray, real_x: int, real_y: int, kind: Kind) -> np.ndarray:
    """How much each position of x attends to each of y in `co_block`, by head."""
    x = sub_block(p["norm1"], x, lambda x: attention(p["self_attention"], x, x, real_x, kind.heads), kind)
    x, y = (norm(p["norm2"], x, kind.eps), norm(None, y, kind.eps)) if kind.pre else (x, y)
    return attention_weights(p["cross_attention"], x, y, real_y, kind.heads)


def layer_of(stacked: Parameters, layer: int) -> Parameters:
    """The parameters of one layer of several."""
    return {k: layer_of(v, layer) if isinstance(v, dict) else np.asarray(v)[layer] for k, v in stacked.items()}


def streams(p: Parameters, image: np.ndarray, text: np.ndarray, real: int, depth: int, kind: Kind) -> list:
    """(image, text) before the first layer and behind each; of the words the first `real` are real."""
    x, y = dense(p["image_input"], image) + p["image_type"][0], dense(p["text_input"], text) + p["text_type"][0]
    states = [(x, y)]
    for layer in range(depth):
        of_image, of_text = (layer_of(p[f"{name}_stream"]["blocks"]["block"], layer) for name in ("image", "text"))
        old_x, old_y = states[-1]
        x = co_block(of_image, old_x, old_y, len(old_x), real, kind)
        y = co_block(of_text, old_y, old_x, real, len(old_x), kind)
        states.append((x, y))
    return states


def pair(p: Parameters, image: np.ndarray, text: np.ndarray, kind: Kind) -> np.ndarray:
    """[tanh(dense(text)); tanh(dense(image))] of the first positions behind the last layer."""
    parts = []
    for name, x in (("text", text), ("image", image)):
        x = norm(p[f"{name}_stream"]["norm"], x, kind.eps) if kind.pre else x
        parts.append(np.tanh(dense(p[f"{name}_pooler"], x[:1]))[0])
    return np.concatenate(parts)


def decode(p: Parameters, x: np.ndarray, shown: list[int], position: np.ndarray, prefix: int, kind: Kind) -> np.ndarray:
    """All patches from the prefix and the visible ones, `shown`; the decoder's blocks are pre-norm with quick GELU."""
    x = dense(p["to_decoder"], norm(None, x, kind.eps) if kind.pre else x)
    patches = np.stack(
        [x[prefix + shown.index(n)] if n in shown else p["mask_token"][0, 0] for n in range(len(position))]
    )
    x = np.concatenate([x[:prefix], patches + position])
    blocks, inside = p["blocks"]["blocks"]["block"], kind._replace(pre=True)
    for layer in range(len(blocks["norm1"]["scale"])):
        own = layer_of(blocks, layer)
        x = sub_block(own["norm1"], x, lambda x, p=own: attention(p["attention"], x, x, len(x), kind.heads), inside)
        x = sub_block(own["norm2"], x, lambda x, p=own: feed_forward(p["feed_forward"], x, quick_gelu), inside)
    return dense(p["from_decoder"], norm(p["blocks"]["norm"], x, kind.eps))[prefix:]
