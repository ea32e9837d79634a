"""What a task reads: generated examples where the config has scenes, otherwise an annotated set in its own format."""

from collections.abc import Mapping

from ml_collections import ConfigDict


def choose(config: ConfigDict, *, scenes: str, files: str, splits: Mapping[str, str], images: str) -> bool:
    """Sets the source of a config and the splits that are scored; whether examples are generated.

    Args:
        scenes: the module of maskvlm_jax/data/scenes that generates examples.
        files: the kind of source that reads the set; splits: split -> its file; images: the folder of its pictures.
    """
    if config.data.get("source") == "scenes":
        config.data.source = f"maskvlm_jax.data.scenes.{scenes}"
        return True
    if config.data.mixture:
        raise ValueError(f"a mixture is not read by this task; give one set, data=files for that of kind {files}")
    config.data.source, config.data.images, config.data.splits = files, images, ConfigDict(dict(splits))
    config.data.augment.crop_scale = (0.5, 1.0)  # ALBEF's: what is asked about must not be cut off
    config.evaluation.split, config.evaluation.captions_per_image = "test", 0
    return False


def set_length(config: ConfigDict, *, epochs: float, batch_size: int) -> None:
    """The length of fine-tuning where the size is a paper's, with ALBEF's rate for all parameters."""
    if config.epochs:
        config.epochs, config.batch_size = epochs, batch_size
        config.optim.lr = config.optim.encoder_lr = 2e-5
