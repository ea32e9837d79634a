"""The MaskVLM step that a PyTorch user would write, for comparison: fused attention, AdamW, no JAX.

    python benchmarks/torch_step.py --shape torch-tiny --steps 10
    python benchmarks/torch_step.py --shape torch-small --compile --dtype bfloat16
    python benchmarks/torch_step.py --shape torch-base --device cuda --compile blocks --dtype bfloat16

`benchmarks/compare_torch.py` runs it in turns with ours; `tests/test_torch_step.py` shows that both compute the same
losses and gradients from the same parameters. It needs torch and NumPy. It prints one JSON object.
One file, though a long one: a PyTorch user can read the whole step in it.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.command import wait_for_turn
from benchmarks.shapes import LOSSES, SHAPES, Shape

INPUTS = ("image", "tokens", "tokens_masked", "token_valid", "image_masked", "text_masked")
Negatives = tuple[Tensor, Tensor]  # image_of_text_B, text_of_image_B: rows of the batch


class Attention(nn.Module):
    """Multi-head attention of x over itself, or over another sequence."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.query = heads, nn.Linear(width, width)
        self.key_value, self.out = nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x_BSD: Tensor, other_BTD: Tensor, valid_B11T: Tensor | None) -> Tensor:
        projected = self.query(x_BSD), *self.key_value(other_BTD).chunk(2, dim=-1)
        split = [y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in projected]
        x_BHSK = F.scaled_dot_product_attention(*split, attn_mask=valid_B11T)
        return self.out(x_BHSK.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, attention over another sequence if `cross`, feed-forward; each with a residual and a norm."""

    def __init__(self, shape: Shape, *, pre: bool = False, cross: bool = False):
        super().__init__()
        width, self.pre = shape.width, pre
        norms = [nn.LayerNorm(width, eps=1e-6 if pre else 1e-5) for _ in range(2 + cross)]
        self.norms, self.attention = nn.ModuleList(norms), Attention(width, shape.heads)
        self.cross_attention = Attention(width, shape.heads) if cross else None
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(
        self,
        x_BSD: Tensor,
        valid_B11S: Tensor | None = None,
        other_BTD: Tensor | None = None,
        other_valid_B11T: Tensor | None = None,
    ) -> Tensor:
        parts = [lambda y: self.attention(y, y, valid_B11S), self.feed_forward]
        if self.cross_attention is not None:
            parts.insert(1, lambda y: self.cross_attention(y, other_BTD, other_valid_B11T))
        for part, norm in zip(parts, self.norms, strict=True):
            x_BSD = x_BSD + part(norm(x_BSD)) if self.pre else norm(x_BSD + part(x_BSD))
        return x_BSD


class ImageEncoder(nn.Module):
    """ViT; hidden patches enter as a learned token."""

    def __init__(self, shape: Shape):
        super().__init__()
        patches = (shape.image_size // shape.patch) ** 2
        self.patches = nn.Conv2d(3, shape.width, kernel_size=shape.patch, stride=shape.patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, shape.width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, shape.width))
        self.position = nn.Parameter(torch.empty(1, 1 + patches, shape.width))
        self.blocks = nn.ModuleList(Block(shape, pre=True) for _ in range(shape.image_depth))
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)

    def forward(self, image_BCYX: Tensor, masked_BN: Tensor | None = None) -> Tensor:
        x_BND = self.patches(image_BCYX).flatten(2).mT
        if masked_BN is not None:
            x_BND = torch.where(masked_BN[:, :, None], self.mask_token.to(x_BND.dtype), x_BND)
        start_B1D = self.class_token.expand(len(x_BND), -1, -1).to(x_BND.dtype)
        x_BSD = torch.cat([start_B1D, x_BND], dim=1) + self.position
        for block in self.blocks:
            x_BSD = block(x_BSD)
        return self.norm(x_BSD)


class TextEncoder(nn.Module):
    """BERT."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.words = nn.Embedding(shape.vocab, shape.width)
        self.position = nn.Parameter(torch.empty(1, shape.length, shape.width))
        self.norm = nn.LayerNorm(shape.width, eps=1e-5)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.text_depth))

    def forward(self, tokens_BL: Tensor, valid_B11L: Tensor) -> Tensor:
        x_BLD = self.norm(self.words(tokens_BL) + self.position)
        for block in self.blocks:
            x_BLD = block(x_BLD, valid_B11L)
        return x_BLD


class CrossEncoder(nn.Module):
    """Blocks that read the other encoder's output."""

    def __init__(self, shape: Shape, depth: int):
        super().__init__()
        self.blocks = nn.ModuleList(Block(shape, cross=True) for _ in range(depth))

    def forward(self, x_BSD: Tensor, *valid_and_other: Tensor | None) -> Tensor:
        for block in self.blocks:
            x_BSD = block(x_BSD, *valid_and_other)
        return x_BSD


class MaskVLM(nn.Module):
    """The model and its four losses."""

    def __init__(self, shape: Shape):
        super().__init__()
        width, self.patch = shape.width, shape.patch
        self.image_encoder, self.text_encoder = ImageEncoder(shape), TextEncoder(shape)
        self.image_stream, self.text_stream = (CrossEncoder(shape, shape.cross_depth) for _ in range(2))
        self.decoder = CrossEncoder(shape, shape.decoder_depth)
        self.to_pixels, self.to_words = nn.Linear(width, 3 * shape.patch**2), nn.Linear(width, shape.vocab)
        self.image_projection, self.text_projection = nn.Linear(width, shape.embed), nn.Linear(width, shape.embed)
        self.to_match = nn.Linear(width, 2)
        self.temperature = nn.Parameter(torch.tensor(0.07))
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.ndim > 1:
                nn.init.trunc_normal_(p, std=0.02, a=-0.04, b=0.04)

    def forward(self, batch: Mapping[str, Tensor], negatives: Negatives | None = None) -> dict[str, Tensor]:
        """Each loss by its name.

        Args:
            batch: the arrays `INPUTS`, of which the image is (B, C, Y, X).
            negatives: a picture for each caption and a caption for each picture; drawn by similarity if None.
        """
        valid_B11L = batch["token_valid"][:, None, None]
        image_BSD, text_BLD = self.image_encoder(batch["image"]), self.text_encoder(batch["tokens"], valid_B11L)
        similarity_BB = self.similarity(image_BSD, text_BLD)
        negatives = draw_negatives(similarity_BB) if negatives is None else negatives
        own = torch.arange(len(similarity_BB), device=similarity_BB.device)
        return {
            "masked_image": self.masked_image(batch, text_BLD, valid_B11L),
            "masked_text": self.masked_text(batch, image_BSD, valid_B11L),
            "contrastive": F.cross_entropy(similarity_BB, own) + F.cross_entropy(similarity_BB.T, own),
            "matching": self.matching(image_BSD, text_BLD, valid_B11L, *negatives),
        }

    def masked_image(self, batch: Mapping[str, Tensor], text_BLD: Tensor, valid_B11L: Tensor) -> Tensor:
        image_BCYX, masked_BN = batch["image"], batch["image_masked"]
        x_BSD = self.image_stream(self.image_encoder(image_BCYX, masked_BN), None, text_BLD, valid_B11L)
        x_BSD = self.decoder(x_BSD, None, text_BLD, valid_B11L)
        pixels_BNF = F.unfold(image_BCYX, kernel_size=self.patch, stride=self.patch).mT
        return F.l1_loss(self.to_pixels(x_BSD[:, 1:][masked_BN]), pixels_BNF[masked_BN])

    def masked_text(self, batch: Mapping[str, Tensor], image_BSD: Tensor, valid_B11L: Tensor) -> Tensor:
        masked_BL = batch["text_masked"]
        x_BLD = self.text_stream(self.text_encoder(batch["tokens_masked"], valid_B11L), valid_B11L, image_BSD)
        return F.cross_entropy(self.to_words(x_BLD[masked_BL]), batch["tokens"][masked_BL])

    def similarity(self, image_BSD: Tensor, text_BLD: Tensor) -> Tensor:
        """Cosines over the temperature; images are rows."""
        image_BE = F.normalize(self.image_projection(image_BSD[:, 0]), dim=-1)
        text_BE = F.normalize(self.text_projection(text_BLD[:, 0]), dim=-1)
        return image_BE @ text_BE.T / self.temperature.clamp(0.001, 0.5)

    def matching(
        self, image_BSD: Tensor, text_BLD: Tensor, valid_B11L: Tensor, image_of_text_B: Tensor, text_of_image_B: Tensor
    ) -> Tensor:
        own = torch.arange(len(image_BSD), device=image_BSD.device)
        images_P, texts_P = torch.cat([own, image_of_text_B, own]), torch.cat([own, own, text_of_image_B])
        image_PSD, text_PLD, valid_P11L = image_BSD[images_P], text_BLD[texts_P], valid_B11L[texts_P]
        image_PD = self.image_stream(image_PSD, None, text_PLD, valid_P11L)[:, 0]
        text_PD = self.text_stream(text_PLD, valid_P11L, image_PSD)[:, 0]
        matched_P = (torch.arange(len(images_P), device=own.device) < len(own)).long()
        return F.cross_entropy(self.to_match(image_PD * text_PD), matched_P)


@torch.no_grad()
def draw_negatives(similarity_BB: Tensor) -> Negatives:
    """A picture for each caption and a caption for each picture, by softmax(similarity) over the others."""
    logits_BB = similarity_BB.float().clone().fill_diagonal_(-torch.inf)
    image_of_text_B, text_of_image_B = (x.softmax(1).multinomial(1)[:, 0] for x in (logits_BB.T, logits_BB))
    return image_of_text_B, text_of_image_B


def to_torch(batch: Mapping[str, np.ndarray], device: str = "cpu") -> dict[str, Tensor]:
    """A batch of `benchmarks.shapes` as the model reads it."""
    tensors = {name: torch.from_numpy(batch[name]).to(device) for name in INPUTS}
    tensors["image"] = tensors["image"].permute(0, 3, 1, 2).contiguous()
    return tensors | {name: tensors[name].long() for name in ("tokens", "tokens_masked")}


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with the paper's two rates; weights decay, and the word embedding."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, p in model.named_parameters():
        decays = p.ndim > 1 and not name.endswith(("_token", "position"))
        encoder = name.startswith(("image_encoder.", "text_encoder.")) and not name.endswith("mask_token")
        groups.setdefault((encoder, decays), []).append(p)
    options = [
        {"params": params, "lr": 1e-5 if encoder else 3e-4, "weight_decay": 0.05 if decays else 0.0}
        for (encoder, decays), params in groups.items()
    ]
    return torch.optim.AdamW(options, fused=True)


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """One step; returns the losses, which nobody has waited for."""
    optimizer.zero_grad()
    device = next(model.parameters()).device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        losses = model(batch)
    sum(losses.values()).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return {name: losses[name].detach() for name in LOSSES}


def flags() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default=next(iter(SHAPES)))
    parser.add_argument("--batch-size", type=int, help="pairs a step; the shape's by default")
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed, after one that warms up")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16: autocast")
    parser.add_argument(
        "--compile",
        nargs="?",
        const="model",
        choices=["model", "blocks"],
        help="torch.compile of the whole model or, as PyTorch advises where blocks repeat, of each: minutes less",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser.parse_args()


def main() -> None:
    """Measures and prints one JSON object."""
    args = flags()
    shape = SHAPES[args.shape]
    shape = dataclasses.replace(shape, batch_size=args.batch_size or shape.batch_size)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")  # on a GPU, TF32; JAX's default too
    model = MaskVLM(shape).to(args.device)
    optimizer, batch = make_optimizer(model), to_torch(shape.batch(), args.device)
    dtype = getattr(torch, args.dtype)
    if args.compile == "model":
        model.compile()
    elif args.compile == "blocks":
        torch._dynamo.config.recompile_limit = 64  # a program for every kind and shape of block
        for block in filter(lambda module: isinstance(module, Block), model.modules()):
            block.compile(dynamic=False)

    def run(steps: int) -> tuple[float, dict[str, float]]:
        """Seconds a step, and the last losses; only these are waited for."""
        start = time.perf_counter()
        for _ in range(steps):
            losses = train_step(model, optimizer, batch, dtype)
        numbers = {name: loss.item() for name, loss in losses.items()}
        return (time.perf_counter() - start) / steps, numbers

    run(1)  # compiles
    wait_for_turn()
    seconds = [run(1)[0] for _ in range(1 + args.steps)]
    in_a_row, losses = run(args.steps)
    median = statistics.median(seconds[1:])
    taken = in_a_row if args.device == "cuda" else median
    result = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else args.device,
        "device_peak_mib": torch.cuda.max_memory_allocated() / 2**20 if args.device == "cuda" else None,
        "threads": torch.get_num_threads(),
        "dtype": args.dtype,
        "compiled": args.compile,
        "batch_size": shape.batch_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": args.steps,
        "step_seconds": {"median": median, "min": min(seconds[1:]), "max": max(seconds[1:])},
        "seconds_in_a_row": in_a_row,
        "pairs_per_second": shape.batch_size / taken,
        "losses": losses,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
