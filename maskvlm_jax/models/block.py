"""What a stack of blocks is made of, in one value, and the block classes that a config names."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from maskvlm_jax.models.primitives import Dtype
from maskvlm_jax.runtime import plugins


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """The blocks of one stack.

    Attributes:
        width: of the residual stream.
        heads: of every attention; they share the width.
        mlp_ratio: the hidden layer of the feed-forward is so many times as wide.
        norm: "pre", inside the residual (ViT), or "post", behind it (BERT).
        eps: of the layer norms. ViT has 1e-6, BERT and RoBERTa have more.
        activation: of the feed-forward, one of `activations.ACTIVATIONS`.
        dropout: share of what each sub-block adds that is dropped in training.
        init_std: of the kernels at first; 0 is Xavier uniform, see `layers.kernel_init`.
        dtype: of products and activations; parameters are float32.
        remat, unroll: how the stack runs, see `stack.Stack`.
        kind: which blocks, a file of `models/blocks` by its name or any other by its path.
    """

    width: int
    heads: int
    mlp_ratio: int = 4
    norm: str = "pre"
    eps: float = 1e-5
    activation: str = "gelu"
    dropout: float = 0.0
    init_std: float = 0.02
    dtype: Dtype = "float32"
    remat: str = "none"
    unroll: bool = False
    kind: str = "dense"

    @classmethod
    def split(cls, arguments: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """The spec that a part's arguments hold, and the arguments that are no part of it."""
        names = {field.name for field in dataclasses.fields(cls)}
        own = {name: value for name, value in arguments.items() if name in names}
        return cls(**own), {name: value for name, value in arguments.items() if name not in names}

    @property
    def pre_norm(self) -> bool:
        """Whether the residual stream leaves the last block without a norm, and gets one behind the stack."""
        return self.norm == "pre"


@dataclasses.dataclass(frozen=True)
class RoutedSpec(BlockSpec):
    """Blocks whose feed-forward layer is a mixture.

    Attributes:
        experts: how many there are; top: how many of them each position goes through.
        expert_ratio: the hidden layer of each expert is so many times as wide.
    """

    experts: int = 4
    top: int = 2
    expert_ratio: int = 4


_PARTS = {"Block": "block", "CrossBlock": "cross block", "ModalityBlock": "block by modality"}
_PARTS |= {"RoutedBlock": "routed block"}  # what messages call the classes of a kind


def block_class(kind: str, part: str = "Block") -> type:
    """The class of `maskvlm_jax/models/blocks/<kind>.py`, or of the file that `kind` is the path of.

    Args:
        part: "Block", self-attention alone, or "CrossBlock", which reads the other modality too, see `blocks.base`;
            "ModalityBlock" or "RoutedBlock", see `blocks.experts`.

    Raises:
        UserError: there is no such file, or no such class in it.
    """
    return plugins.load("maskvlm_jax.models.blocks", kind, part, _PARTS[part])
