"""What a frozen image encoder makes of pictures that are not augmented, kept on disk: each is encoded once."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict
from numpy.typing import DTypeLike

from maskvlm_jax.data.batch import FEATURES
from maskvlm_jax.models.vision import normalised
from maskvlm_jax.runtime import buckets, processes, sharding
from maskvlm_jax.runtime.errors import UserError, writing
from maskvlm_jax.settings import rules
from maskvlm_jax.training import build
from maskvlm_jax.training.train_step import Params, parameters_sha256

ENCODER = "vlm/image_encoder/"


def check(config: ConfigDict) -> None:
    """Whether features that were made once are what the step would make.

    Raises:
        UserError: naming the value that would change them.
    """
    if not config.data.cache_features:
        return
    augment, image = config.data.augment, config.model.image
    wrong = {
        "data.augment.crop_scale=(1.0,1.0)": tuple(augment.crop_scale) != (1.0, 1.0),
        "data.augment.flip=False": augment.flip,
        "data.augment.randaugment_ops=0": augment.randaugment_ops,
        "data.modality_dropout=0.0": config.data.modality_dropout,
        "model.image.dropout=0.0": image.dropout,
        "optim.freeze=('vlm/image_encoder',)": not _is_frozen(config),
    }
    for flag, differs in wrong.items():
        if differs:
            raise UserError(f"data.cache_features keeps what pictures always become; set --config.{flag}")
    active = rules.active_objectives(config)
    if config.masking.masker or any(kind.needs(config.objectives[label]).teacher for label, kind in active.items()):
        raise UserError("data.cache_features is for models whose moving average is not read; leave it out")
    if image.hidden == "drop_in_fusion":
        raise UserError("data.cache_features is for image encoders with blocks; leave it out")
    if jax.process_count() > 1:
        raise UserError("data.cache_features needs one process; leave it out")
    if buckets.is_remote(Path(config.data.cache_features)):
        raise UserError("data.cache_features needs a folder on this machine; give another")


def _is_frozen(config: ConfigDict) -> bool:
    """Whether no parameter of the image encoder learns but its mask token, which a clean picture does not have."""
    frozen = build.frozen_parameters(config)
    paths = build.parameter_sizes(config)
    return all(path in frozen for path in paths if path.startswith(ENCODER) and not path.endswith("mask_token"))


def key(config: ConfigDict, encoder: Params, fingerprint: str, examples: int) -> str:
    """What names features on disk: another encoder, other examples or other pixels have another name.

    Args:
        encoder: parameters of the image encoder.
        fingerprint, examples: of the source, and how many it has.
    """
    read = {name: value for name, value in encoder.items() if name != "mask_token"}  # which no whole picture reads
    dtype = build.feature_shape(config)[1]
    image = {name: value for name, value in config.model.image.to_dict().items() if name != "hidden"}  # of masked ones
    facts = [parameters_sha256(read), image, fingerprint, examples]
    facts += [dtype.name, jax.default_backend()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _on_disk(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> np.memmap:
    """A file that holds an array, zeros where nothing was written yet."""
    with writing(path), path.open("ab") as file:
        # A full disk is told now, not by a signal later; what is there stays.
        os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return np.memmap(path, dtype, "r+", shape=shape)


class CachedFeatures:
    """image_BSD of the clean view for the batches of a run.

    Args:
        graphdef: of the image encoder.
        examples: how many there are in the source.
        shape, dtype: of the features of one picture.
        folder: where they are kept, for this run and all that have the same `key`.
        mesh: that pictures are encoded on.

    Raises:
        UserError: the folder cannot be written, or the disk is too small.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        *,
        examples: int,
        shape: tuple[int, int],
        dtype: np.dtype,
        folder: Path,
        key: str,
        mesh: Mesh,
    ):
        self._mesh = mesh
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._rows = _on_disk(folder / f"{key}.features", (examples, *shape), dtype)
        self._done = _on_disk(folder / f"{key}.done", (examples,), bool)
        print(
            f"each picture is encoded once: features of {self._done.sum():,} of {examples:,} are in {folder}, "
            f"{self._rows.nbytes / 1e9:.1f} GB in all"
        )
        self._encode = jax.jit(lambda params, image: nnx.merge(graphdef, params)(normalised(image)))

    def add(
        self, params: Params, batch: Mapping[str, np.ndarray], index: np.ndarray, replaced: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The batch with the features of its pictures.

        Args:
            params: of the image encoder, always the same.
            index: which example of the source each is.
            replaced: not 0 where another stands in for it, whose number is not known: such are not kept.
        """
        kept = self._done[index] & (replaced == 0)
        features = self._rows[index]
        if not kept.all():
            # Always as many as a batch has, so that one program does it.
            put = sharding.put_whole({"image": batch["image"]}, self._mesh)
            encoded = processes.fetch(self._encode(params, put["image"]))
            features = np.where(kept[:, None, None], features, encoded)
            new = ~kept & (replaced == 0)
            self._rows[index[new]] = encoded[new]
            self._rows.flush()  # none is called done that a power cut would leave half written
            self._done[index[new]] = True
        return {**batch, FEATURES: features}
