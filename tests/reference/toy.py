"""A tiny learner with random parameters, batches for it, and parameters by path: what many tests share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maskvlm_jax.objectives.context import Context
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime.parameters import map_by_path, parameter_path

PIXELS, PATCH, WIDTH, HEADS, LENGTH, VOCAB = 16, 4, 16, 2, 9, 24
PATCHES = (PIXELS // PATCH) ** 2
MASKED_PATCHES, TEXT_RATIO = 6, 0.4
PAD, START, END, MASK, FIRST_WORD = 0, 1, 2, 3, 4


def shared(**changes: Any) -> dict:
    """Block arguments that every part of the model takes."""
    return {"init_std": 0.0, "remat": "none", "unroll": True, "dtype": "float32"} | changes


def randomised(build: Callable[[], nnx.Module]) -> nnx.Module:
    """A module with random values in place of every initial one, so that biases and norms matter too.

    No initialiser is run: a hundred small compiles would cost more than the tests.
    """
    graphdef, state = nnx.split(nnx.eval_shape(build))

    def value(path: str, shape: jax.ShapeDtypeStruct) -> jax.Array:
        noise = np.random.default_rng([*path.encode()]).normal(size=shape.shape)
        if path.endswith("temperature"):
            return jnp.float32(np.log(0.5))
        fan_in = shape.shape[-2] if path.endswith("kernel") else 4
        return jnp.asarray(path.endswith("scale") + noise * fan_in**-0.5, jnp.float32)

    return nnx.merge(graphdef, map_by_path(value, nnx.to_pure_dict(state)))


def learner(
    *,
    depth: int = 2,
    objectives: dict | None = None,
    more: dict | None = None,
    only: dict | None = None,
    **changes: Any,
) -> Learner:
    """All four objectives, or those of `only`; `changes` are of `shared`, `objectives` more arguments by label, `more`
    of the model."""
    block = {"width": WIDTH, "heads": HEADS, "mlp_ratio": 2, "dropout": 0.0}
    cross = {**block, "depth": depth, "norm": "post"}
    model = {
        "image": {**block, "image_size": PIXELS, "patch": PATCH, "depth": 1, "eps": 1e-6},
        "text": {**block, "vocab_size": VOCAB, "max_length": LENGTH, "depth": 1, "norm": "post"},
        "fusion": {**cross, "kind": "cross", "streams": "both"},
        "embed": 8,
        "temperature": 0.5,
        "shared": shared(**changes),
        **(more or {}),
    }
    names = {"masked_image": {"decoder": cross}, "masked_text": {}, "contrastive": {}, "matching": {}}
    labelled = {
        name: {"name": name, "weight": 1.0, **arguments, **(objectives or {}).get(name, {})}
        for name, arguments in names.items()
    }
    labelled = labelled if only is None else only
    arguments = {"model": model, "objectives": labelled, "masked_patch_count": MASKED_PATCHES, "text_ratio": TEXT_RATIO}
    return randomised(lambda: Learner(**arguments, rngs=nnx.Rngs(0)))


def batch(size: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    """Random pictures and captions of different lengths, every pair different from every other."""
    rng = np.random.default_rng(seed)
    lengths = 4 + np.arange(size) % (LENGTH - 3)
    position = np.arange(LENGTH)
    valid = position < lengths[:, None]
    tokens = rng.integers(FIRST_WORD, VOCAB, (size, LENGTH))
    tokens = np.where(position == 0, START, np.where(position == lengths[:, None] - 1, END, tokens))
    word = valid & (position > 0) & (position < lengths[:, None] - 1)
    order = np.argsort(np.where(word, rng.random(word.shape), 2.0), axis=1).argsort(axis=1)
    text_masked = order < np.ceil(TEXT_RATIO * word.sum(axis=1))[:, None]
    tokens = np.where(valid, tokens, PAD).astype(np.int32)
    return {
        "image": rng.normal(size=(size, PIXELS, PIXELS, 3)).astype(np.float32),
        "tokens": tokens,
        "tokens_masked": np.where(text_masked, MASK, tokens).astype(np.int32),
        "token_valid": valid,
        "image_masked": rng.random((size, PATCHES)).argsort(axis=1) < MASKED_PATCHES,
        "text_masked": text_masked,
        "pair_id": np.stack([np.arange(size), 100 + np.arange(size)], axis=1).astype(np.int32),
        "example_valid": np.ones(size, bool),
    }


def fuse_pairs(ctx: Context, image_ids_P: Any, text_ids_P: Any) -> jax.Array:
    """pair_PD, what is matched, of image `image_ids_P[p]` with caption `text_ids_P[p]` of a context."""
    image, text = ctx._pair_sides()
    return ctx._match(image.gather(jnp.asarray(image_ids_P)), text.gather(jnp.asarray(text_ids_P)))


def by_path(params: Any) -> dict[str, np.ndarray]:
    """A nested dict of arrays as {path: array}."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {parameter_path(path): np.asarray(leaf) for path, leaf in leaves}


def nested(params: dict[str, np.ndarray]) -> dict:
    """Inverse of `by_path`."""
    result: dict = {}
    for path, value in params.items():
        *parents, leaf = path.split("/")
        block = result
        for name in parents:
            block = block.setdefault(name, {})
        block[leaf] = jnp.asarray(value)
    return result


def assert_trees_close(actual: Any, expected: Any, tolerance: float = 1e-6) -> None:
    """Each array to `tolerance` of the largest value of any array: sums of different order differ by that much."""
    actual, expected = by_path(actual), by_path(expected)
    assert actual.keys() == expected.keys()
    scale = max(float(np.max(np.abs(value))) for value in expected.values())
    for path, value in expected.items():
        np.testing.assert_allclose(actual[path], value, rtol=tolerance, atol=tolerance * scale, err_msg=path)
