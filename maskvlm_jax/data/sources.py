"""Opens the source that a config names."""

from typing import Any, Protocol

from maskvlm_jax.data.files import Files
from maskvlm_jax.data.scenes import Scenes
from maskvlm_jax.errors import UserError


class Source(Protocol):
    """Random access to captioned pictures.

    `source[i]` is {"id": str, "image": encoded bytes or HxWx3 uint8 RGB, "captions": [str, ...]} and whatever ground
    truth there is. `id(i)` and `captions(i)` answer without drawing or reading the picture. `report` counts what was
    skipped when the source was opened; `fingerprint` is a sha256 of which examples and captions it holds.
    """

    report: dict[str, int]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    def id(self, index: int) -> str: ...
    def captions(self, index: int) -> list[str]: ...

    @property
    def fingerprint(self) -> str: ...


def open_source(data: dict, split: str, image_size: int) -> Source:
    """The source of `config.data` for one split.

    Raises:
        UserError: an unknown kind of source, or whatever the source finds wrong.
    """
    if data["source"] == "scenes":
        return Scenes(split=split, image_size=image_size, seed=data["scenes_seed"])
    if data["source"] == "files":
        return Files(
            root=data["root"],
            images=data["images"],
            captions=data["captions"],
            split=split,
            splits=dict(data["splits"]) or None,
            max_missing=data["max_missing"],
        )
    raise UserError(f"there is no data source {data['source']!r}; choose scenes or files")
