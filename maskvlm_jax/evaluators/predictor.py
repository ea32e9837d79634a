"""The compiled functions that evaluators share: static shapes, parameters as an argument."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from maskvlm_jax.models.fusion import PairSide
from maskvlm_jax.models.vision import normalised
from maskvlm_jax.objectives import base
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime import processes, sharding

Arrays = Mapping[str, np.ndarray]


class Functions:
    """Compiled functions of one graph definition; kept over a run, so that each compiles once."""

    def __init__(self, graphdef: nnx.GraphDef):
        self._graphdef, self._compiled = graphdef, {}

    def __call__(self, function: Callable[..., Any], params: Any, *arrays: Any) -> Any:
        """function(learner, *arrays) with these parameters."""
        if function not in self._compiled:
            merge = lambda params, *arrays: function(nnx.merge(self._graphdef, params), *arrays)  # noqa: E731
            self._compiled[function] = jax.jit(merge)
        return self._compiled[function](params, *arrays)


def _encode_image(learner: Learner, image_BYXC: jax.Array) -> tuple[jax.Array, jax.Array]:
    vlm = learner.vlm
    image_BSD = vlm.encode_image(normalised(image_BYXC))
    return image_BSD, vlm.embed_image(image_BSD) if vlm.embed else image_BSD[:, 0, :0]


def _encode_text(learner: Learner, tokens_BL: jax.Array, valid_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
    vlm = learner.vlm
    text_BLD = vlm.text_encoder(tokens_BL, valid_BL)
    return text_BLD, vlm.embed_text(text_BLD, valid_BL) if vlm.embed else text_BLD[:, 0, :0]


def _temperature(learner: Learner) -> jax.Array:
    return learner.vlm.current_temperature()


def _prepare_images(learner: Learner, image_BSD: jax.Array) -> PairSide:
    fusion = learner.vlm.fusion
    return fusion.pair_image(fusion.image_side(image_BSD))


def _prepare_texts(learner: Learner, text_BLD: jax.Array, valid_BL: jax.Array) -> PairSide:
    fusion = learner.vlm.fusion
    return fusion.pair_text(fusion.text_side(text_BLD, valid_BL))


def _match(
    learner: Learner, images: PairSide, texts: PairSide, image_ids_P: jax.Array, text_ids_P: jax.Array
) -> jax.Array:
    pair_PD = learner.vlm.fusion.match(images.gather(image_ids_P), texts.gather(text_ids_P))
    return learner.offering(base.ScoresPairs).log_odds(pair_PD)


class Predictor:
    """`Functions` with parameters: NumPy in, NumPy out.

    Args:
        functions: of the model's graph definition.
        params: on the devices.
        objectives: label -> class of each objective that was trained.
        mesh: batches are split over it.
    """

    def __init__(self, functions: Functions, params: Any, *, objectives: Mapping[str, type], mesh: Mesh):
        self._functions, self._params, self._mesh, self._objectives = functions, params, mesh, objectives

    def offers(self, role: type) -> bool:
        """Whether an objective of the model has a role, see `objectives.base`."""
        return base.objective_of(self._objectives, role) is not None

    def call(self, function: Callable[..., Any], *arrays: Any) -> Any:
        """function(learner, *arrays), compiled, its result left on the device.

        A dict of arrays is a batch, which is split over the mesh.
        """
        arrays = [sharding.put_whole(x, self._mesh) if isinstance(x, dict) else x for x in arrays]
        return self._functions(function, self._params, *arrays)

    def fetch(self, function: Callable[..., Any], batch: Arrays, *more: Any) -> Any:
        """function(learner, batch, *more), compiled, as NumPy arrays."""
        return processes.fetch(self.call(function, dict(batch), *more))

    def encode_image(self, image_BYXC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """image_BSD and image_BE, of width 0 if the model has no contrastive space."""
        put = sharding.put_whole({"image": image_BYXC}, self._mesh)
        return processes.fetch(self.call(_encode_image, put["image"]))

    def encode_text(self, tokens_BL: np.ndarray, valid_BL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """text_BLD and text_BE, of width 0 if the model has no contrastive space."""
        put = sharding.put_whole({"tokens": tokens_BL, "valid": valid_BL}, self._mesh)
        return processes.fetch(self.call(_encode_text, put["tokens"], put["valid"]))

    def embed_image(self, image_BYXC: np.ndarray) -> np.ndarray:
        """image_BE alone: the sequences, gigabytes of a whole set, stay where they are and are dropped."""
        put = sharding.put_whole({"image": image_BYXC}, self._mesh)
        return processes.fetch(self.call(_encode_image, put["image"])[1])

    def embed_text(self, tokens_BL: np.ndarray, valid_BL: np.ndarray) -> np.ndarray:
        """text_BE alone, likewise."""
        put = sharding.put_whole({"tokens": tokens_BL, "valid": valid_BL}, self._mesh)
        return processes.fetch(self.call(_encode_text, put["tokens"], put["valid"])[1])

    def temperature(self) -> float:
        """The learned temperature of the contrastive space."""
        return float(processes.fetch(self.call(_temperature)))

    def prepare_images(self, image_BSD: np.ndarray) -> PairSide:
        """What matching reads of pictures, computed once for all captions each is paired with; left on the device."""
        return self.call(_prepare_images, image_BSD)

    def prepare_texts(self, text_BLD: np.ndarray, valid_BL: np.ndarray) -> PairSide:
        """The same of captions."""
        return self.call(_prepare_texts, text_BLD, valid_BL)

    def match(self, images: PairSide, texts: PairSide, image_ids_P: np.ndarray, text_ids_P: np.ndarray) -> jax.Array:
        """(P,) log-odds of prepared pictures matching prepared captions, split over the mesh; left on the device."""
        put = sharding.put_whole({"image": image_ids_P, "text": text_ids_P}, self._mesh)
        return self.call(_match, images, texts, put["image"], put["text"])

    def pair_batch(self, least: int) -> int:
        """`least` pairs or the next number that splits evenly over the mesh."""
        shares = sharding.shares_of(self._mesh)
        return -(-least // shares) * shares
