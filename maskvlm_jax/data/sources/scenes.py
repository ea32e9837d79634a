"""Data source `scenes`: pictures made by code, see `maskvlm_jax.data.scenes.source`."""

from collections.abc import Mapping, Sequence
from typing import Any

from maskvlm_jax.data.scenes.source import SPLIT_LENGTHS, Scenes
from maskvlm_jax.data.sources.base import Source


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """The split `split`, drawn from the seed `data.scenes_seed` at `image_size` pixels."""
    return Scenes(split=split, image_size=image_size, seed=data["scenes_seed"])


def existing_splits(data: Mapping[str, Any]) -> Sequence[str]:
    """All of them: they are made, not read."""
    return tuple(SPLIT_LENGTHS)
