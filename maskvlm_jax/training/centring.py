"""Where the centres of the contrastive space start: at the means of what the encoders give.

Features of an encoder that was trained elsewhere have a large part in common, by which no picture is told from another.
A dense layer that reads them learns slowly, for that part of them is in each of its steps.
"""

from collections.abc import Iterator, Mapping
from itertools import chain, islice

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from maskvlm_jax.data import batch as batches
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime import processes, sharding
from maskvlm_jax.training import initial_state
from maskvlm_jax.training.cached_features import CachedFeatures
from maskvlm_jax.training.train_step import Params, TrainState

EXAMPLES = 512  # that the means are taken over, rounded up to whole batches
Arrays = dict[str, np.ndarray]


def is_due(params: Params) -> bool:
    """Whether a new run has centres that it did not take over from another run: those are zeros."""
    centre = params["vlm"].get("image_centre")
    return centre is not None and not np.any(processes.fetch(centre))


def start(
    state: TrainState,
    graphdef: nnx.GraphDef,
    stream: Iterator[Arrays],
    features: CachedFeatures | None,
    mesh: Mesh,
    *,
    batch_size: int,
) -> tuple[TrainState, Iterator[Arrays]]:
    """The state with its centres at the means over the first examples; and the stream from its beginning.

    Args:
        graphdef: of the learner.
        features: of a frozen image encoder, if they are kept.
        mesh: what is trained on.
        batch_size: of all processes.
    """
    first = list(islice(stream, -(-EXAMPLES // batch_size)))
    vlm = state.params["vlm"]
    places = {name: vlm[name].sharding for name in ("image_centre", "text_centre")}
    measure = jax.jit(lambda params, batch: _means(nnx.merge(graphdef, params), batch), out_shardings=places)
    found = []
    for batch in first:
        arrays = {name: value for name, value in batch.items() if name not in batches.HOST_KEYS}
        if features is not None:
            arrays = features.add(vlm["image_encoder"], arrays, batch["index"], batch["replaced"])
        found.append(measure(state.params, sharding.put(arrays, mesh)))
    centres = jax.tree.map(lambda *means: sum(means) / len(means), *found)
    print(f"the contrastive space is centred by {len(first) * batch_size:,} examples")
    return initial_state.starting_from(state, state.params | {"vlm": vlm | centres}), chain(first, stream)


def _means(learner: Learner, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Means of the first positions and of all others, (2, D), over a batch, of what is not padding."""
    ctx = learner.context(batch)

    def of(x_BSD: jax.Array, valid_BS: jax.Array | None = None) -> jax.Array:
        x_BSD = x_BSD.astype(jnp.float32)
        others = None if valid_BS is None else valid_BS[:, 1:, None]
        return jnp.stack([jnp.mean(x_BSD[:, 0], axis=0), jnp.mean(x_BSD[:, 1:], axis=(0, 1), where=others)])

    return {
        "image_centre": of(ctx.image("clean")),
        "text_centre": of(ctx.text("clean"), batch["token_valid"]),
    }
