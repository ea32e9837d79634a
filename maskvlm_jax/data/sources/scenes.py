"""Data source `scenes`: pictures made by code, see `maskvlm_jax.data.scenes.source`."""

from collections.abc import Mapping
from typing import Any

from maskvlm_jax.data.scenes.source import Scenes
from maskvlm_jax.data.scenes.source import existing_splits as existing_splits
from maskvlm_jax.data.sources.base import Source


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """The split `split`, drawn from the seed `data.scenes_seed` at `image_size` pixels."""
    return Scenes(split=split, image_size=image_size, seed=data["scenes_seed"])
