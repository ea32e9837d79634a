"""The compiled functions that evaluators share: static shapes, parameters as an argument."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from maskvlm_jax import processes, sharding
from maskvlm_jax.models.fusion import PairSide
from maskvlm_jax.models.vision import normalised
from maskvlm_jax.objectives.masked_image import masked_patch_target

Arrays = Mapping[str, np.ndarray]


class Functions:
    """Compiled functions of one graph definition; kept over a run, so that each compiles once."""

    def __init__(self, graphdef: nnx.GraphDef):
        def model(params):
            return nnx.merge(graphdef, params)

        def encode_image(params, image_BYXC):
            vlm = model(params).vlm
            image_BSD = vlm.encode_image(normalised(image_BYXC))
            return image_BSD, vlm.embed_image(image_BSD) if vlm.embed else image_BSD[:, 0, :0]

        def encode_text(params, tokens_BL, valid_BL):
            vlm = model(params).vlm
            text_BLD = vlm.text_encoder(tokens_BL, valid_BL)
            return text_BLD, vlm.embed_text(text_BLD) if vlm.embed else text_BLD[:, 0, :0]

        def temperature(params):
            return model(params).vlm.current_temperature()

        def prepare_images(params, image_BSD):
            fusion = model(params).vlm.fusion
            return fusion.pair_image(fusion.image_side(image_BSD))

        def prepare_texts(params, text_BLD, valid_BL):
            fusion = model(params).vlm.fusion
            return fusion.pair_text(fusion.text_side(text_BLD, valid_BL))

        def match(params, images: PairSide, texts: PairSide, image_ids_P, text_ids_P):
            pretrainer = model(params)
            pair_PD = pretrainer.vlm.fusion.match(images.gather(image_ids_P), texts.gather(text_ids_P))
            return pretrainer.objectives["matching"].log_odds(pair_PD)

        def masked_text(params, batch):
            pretrainer = model(params)
            ctx = pretrainer.context(batch)
            logits_BMV, positions = pretrainer.objectives["masked_text"].predict(ctx)
            target_BM = jnp.take_along_axis(batch["tokens"], positions.ids_BM, axis=1)
            nll_BM = optax.softmax_cross_entropy_with_integer_labels(logits_BMV.astype(jnp.float32), target_BM)
            predicted_BM = jnp.argmax(logits_BMV, axis=-1)
            return nll_BM, predicted_BM, target_BM, positions

        def masked_image(params, batch):
            pretrainer = model(params)
            ctx = pretrainer.context(batch)
            pred_BMF, positions = pretrainer.objectives["masked_image"].predict(ctx)
            patch = pretrainer.vlm.image_encoder.patch
            return pred_BMF, masked_patch_target(ctx.pixels_BYXC, positions.ids_BM, patch), positions

        def masked_feature(params, batch):
            pretrainer = model(params)
            # The weights that are evaluated give the targets, whichever they are.
            ctx = pretrainer.context(batch, teacher=pretrainer.context(batch))
            return *pretrainer.objectives["masked_feature"].predict(ctx), ctx.masked_patches

        self.encode_image, self.encode_text = jax.jit(encode_image), jax.jit(encode_text)
        self.temperature = jax.jit(temperature)
        self.prepare_images, self.prepare_texts = jax.jit(prepare_images), jax.jit(prepare_texts)
        self.match = jax.jit(match)
        self.masked_text, self.masked_image = jax.jit(masked_text), jax.jit(masked_image)
        self.masked_feature = jax.jit(masked_feature)


class Predictor:
    """`Functions` with parameters: NumPy in, NumPy out.

    Args:
        functions: of the model's graph definition.
        params: on the devices.
        objectives: labels of the objectives that were trained.
        mesh: batches are split over it.
    """

    def __init__(self, functions: Functions, params: Any, *, objectives: tuple[str, ...], mesh: Mesh):
        self._functions, self._params, self._mesh, self.objectives = functions, params, mesh, objectives

    def _call(self, name: str, *arrays: Any) -> Any:
        arrays = [sharding.put_whole(x, self._mesh) if isinstance(x, dict) else x for x in arrays]
        return getattr(self._functions, name)(self._params, *arrays)

    def encode_image(self, image_BYXC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """image_BSD and image_BE, of width 0 where the model has no contrastive space."""
        put = sharding.put_whole({"image": image_BYXC}, self._mesh)
        return processes.fetch(self._call("encode_image", put["image"]))

    def encode_text(self, tokens_BL: np.ndarray, valid_BL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """text_BLD and text_BE, of width 0 where the model has no contrastive space."""
        put = sharding.put_whole({"tokens": tokens_BL, "valid": valid_BL}, self._mesh)
        return processes.fetch(self._call("encode_text", put["tokens"], put["valid"]))

    def embed_image(self, image_BYXC: np.ndarray) -> np.ndarray:
        """image_BE alone: the sequences, gigabytes of a whole set, stay where they are and are dropped."""
        put = sharding.put_whole({"image": image_BYXC}, self._mesh)
        return processes.fetch(self._call("encode_image", put["image"])[1])

    def embed_text(self, tokens_BL: np.ndarray, valid_BL: np.ndarray) -> np.ndarray:
        """text_BE alone, likewise."""
        put = sharding.put_whole({"tokens": tokens_BL, "valid": valid_BL}, self._mesh)
        return processes.fetch(self._call("encode_text", put["tokens"], put["valid"])[1])

    def temperature(self) -> float:
        """The learned temperature of the contrastive space."""
        return float(processes.fetch(self._call("temperature")))

    def prepare_images(self, image_BSD: np.ndarray) -> PairSide:
        """What matching reads of pictures, computed once for all captions each is paired with; left on the device."""
        return self._call("prepare_images", image_BSD)

    def prepare_texts(self, text_BLD: np.ndarray, valid_BL: np.ndarray) -> PairSide:
        """The same of captions."""
        return self._call("prepare_texts", text_BLD, valid_BL)

    def match(self, images: PairSide, texts: PairSide, image_ids_P: np.ndarray, text_ids_P: np.ndarray) -> jax.Array:
        """(P,) log-odds of prepared pictures matching prepared captions, split over the mesh; left on the device."""
        put = sharding.put_whole({"image": image_ids_P, "text": text_ids_P}, self._mesh)
        return self._call("match", images, texts, put["image"], put["text"])

    def pair_batch(self, least: int) -> int:
        """`least` pairs or the next number that splits evenly over the mesh."""
        shares = sharding.shares_of(self._mesh)
        return -(-least // shares) * shares

    def masked_text(self, batch: Arrays) -> tuple[np.ndarray, np.ndarray, np.ndarray, Any]:
        """nll_BM, predicted ids_BM, target ids_BM and the positions."""
        return processes.fetch(self._call("masked_text", dict(batch)))

    def masked_image(self, batch: Arrays) -> tuple[np.ndarray, np.ndarray, Any]:
        """pred_BMF, target_BMF in normalised pixels, and the positions."""
        return processes.fetch(self._call("masked_image", dict(batch)))

    def masked_feature(self, batch: Arrays) -> tuple[np.ndarray, np.ndarray, Any]:
        """pred_BMD and target_BMD, features of unit length, and the positions."""
        return processes.fetch(self._call("masked_feature", dict(batch)))
