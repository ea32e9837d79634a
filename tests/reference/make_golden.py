"""Writes golden/*.npz: outputs and gradients of torch's own layers, for the package's layers to be held against.

Run by hand with Python 3.11, in an environment of its own; the tests only read what it wrote:

    pip install torch==2.13.0 numpy
    python tests/reference/make_golden.py

Weights and inputs are drawn from a fixed seed and rounded to float32; outputs and gradients are computed in float64.
A file holds input/NAME, param/TORCH_NAME, cotangent, output, input_grad/NAME and param_grad/TORCH_NAME, where gradients
are those of sum(output * cotangent).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

FOLDER = Path(__file__).parent / "golden"
WIDTH, HEADS, BATCH = 16, 2, 2
BLOCK = {"d_model": WIDTH, "nhead": HEADS, "dim_feedforward": 4 * WIDTH, "dropout": 0.0, "batch_first": True}
GELU = nn.functional.gelu  # exact, with erf


def uniform(*shape: int) -> torch.Tensor:
    """Float64 values that float32 holds exactly."""
    return (2 * torch.rand(shape, dtype=torch.float32) - 1).double()


def randomise(module: nn.Module) -> nn.Module:
    """Every parameter random, biases and norms too, so that each takes part in the output."""
    for name, value in module.named_parameters():
        scale = 0.5 if value.ndim > 1 else 0.3
        value.data = scale * uniform(*value.shape) + float("norm" in name and name.endswith("weight"))
        value.data = value.data.float().double()
    return module.double()


def encoder_layer(pre: bool, eps: float) -> nn.Module:
    return nn.TransformerEncoderLayer(**BLOCK, activation=GELU, layer_norm_eps=eps, norm_first=pre)


def decoder_layer(pre: bool) -> nn.Module:
    return nn.TransformerDecoderLayer(**BLOCK, activation=GELU, layer_norm_eps=1e-5, norm_first=pre)


class ImageEncoder(nn.Module):
    """ViT: the patch embedding is a convolution, hidden patches are replaced by a token."""

    def __init__(self, pixels: int, patch: int, depth: int):
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, WIDTH, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.position = nn.Parameter(torch.zeros(1, 1 + (pixels // patch) ** 2, WIDTH))
        self.blocks = nn.ModuleList(encoder_layer(pre=True, eps=1e-6) for _ in range(depth))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, image: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        x = self.patch_embedding(image.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        x = torch.where(masked[:, :, None], self.mask_token, x)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class TextEncoder(nn.Module):
    """BERT: embeddings, their norm, post-norm blocks; padding is attended by no position."""

    def __init__(self, vocab_size: int, length: int, depth: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, WIDTH)
        self.position = nn.Parameter(torch.zeros(1, length, WIDTH))
        self.embedding_norm = nn.LayerNorm(WIDTH, eps=1e-5)
        self.blocks = nn.ModuleList(encoder_layer(pre=False, eps=1e-5) for _ in range(depth))

    def forward(self, tokens: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        x = self.embedding_norm(self.embedding(tokens) + self.position[:, : tokens.shape[1]])
        for block in self.blocks:
            x = block(x, src_key_padding_mask=~valid)
        return x


def write(name: str, module: nn.Module, run: Callable, **inputs: torch.Tensor) -> None:
    """Runs a module forward and backward and writes its file; float64 inputs get gradients."""
    randomise(module)
    for value in inputs.values():
        value.requires_grad_(value.is_floating_point())
    output = run(module, **inputs)
    cotangent = uniform(*output.shape)
    (output * cotangent).sum().backward()
    arrays = {"output": output, "cotangent": cotangent}
    for key, value in inputs.items():
        arrays[f"input/{key}"] = value
        if value.requires_grad:
            arrays[f"input_grad/{key}"] = value.grad
    for key, value in module.named_parameters():
        arrays |= {f"param/{key}": value, f"param_grad/{key}": value.grad}
    numpy = {key: value.detach().numpy() for key, value in arrays.items()}
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(
        FOLDER / f"{name}.npz",
        **{key: value.astype(np.float32) if value.dtype == np.float64 else value for key, value in numpy.items()},
    )


def valid(lengths: tuple[int, ...], length: int) -> torch.Tensor:
    return torch.arange(length)[None] < torch.tensor(lengths)[:, None]


def main() -> None:
    torch.manual_seed(0)
    write(
        "attention",
        nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
        lambda m, x, context, valid: m(x, context, context, key_padding_mask=~valid, need_weights=False)[0],
        x=uniform(BATCH, 5, WIDTH),
        context=uniform(BATCH, 7, WIDTH),
        valid=valid((4, 7), 7),
    )
    for norm, eps in (("pre", 1e-6), ("post", 1e-5)):
        write(
            f"block_{norm}",
            encoder_layer(norm == "pre", eps),
            lambda m, x, valid: m(x, src_key_padding_mask=~valid),
            x=uniform(BATCH, 6, WIDTH),
            valid=valid((6, 3), 6),
        )
        write(
            f"cross_block_{norm}",
            decoder_layer(norm == "pre"),
            lambda m, x, context, valid, context_valid: m(
                x, context, tgt_key_padding_mask=~valid, memory_key_padding_mask=~context_valid
            ),
            x=uniform(BATCH, 6, WIDTH),
            context=uniform(BATCH, 5, WIDTH),
            valid=valid((4, 6), 6),
            context_valid=valid((5, 2), 5),
        )
    write(
        "image_encoder",
        ImageEncoder(pixels=8, patch=4, depth=2),
        lambda m, image, masked: m(image, masked),
        image=uniform(BATCH, 8, 8, 3),
        masked=torch.tensor([[True, False, False, True], [False, False, True, False]]),
    )
    write(
        "text_encoder",
        TextEncoder(vocab_size=11, length=7, depth=2),
        lambda m, tokens, valid: m(tokens, valid),
        tokens=torch.randint(0, 11, (BATCH, 6)),
        valid=valid((6, 4), 6),
    )


if __name__ == "__main__":
    main()
