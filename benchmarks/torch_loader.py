"""The input pipeline that a PyTorch user would write, for comparison: torchvision transforms in a DataLoader.

    python benchmarks/torch_loader.py FOLDER TOKENIZER.json --workers 0 1 2

`benchmarks/input_pipeline.py --torch-python PYTHON` runs it on its own pictures, in the same run. It needs torch,
torchvision and tokenizers, and nothing of this package. FOLDER holds JPEGs and `captions.csv`. The transforms are those
of ALBEF's code: random crop, flip, two operations of RandAugment, normalisation; then tokens and masks.
"""

import argparse
import csv
import json
import time
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

torch.set_num_threads(1)  # workers are a core each


class Captioned(Dataset):
    """Pictures, token ids and masks of a folder."""

    def __init__(self, folder: Path, tokenizer: Path, *, size: int, patch: int, cell: int, length: int):
        with (folder / "captions.csv").open() as file:
            self.rows = [(folder / row["image"], row["caption"]) for row in csv.DictReader(file)]
        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        self.tokenizer.enable_truncation(length)
        self.tokenizer.enable_padding(length=length)
        self.side, self.cell = size // patch // cell, cell
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(
                    size, scale=(0.4, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
                ),
                transforms.RandomHorizontalFlip(),
                transforms.RandAugment(num_ops=2, magnitude=7),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        path, caption = self.rows[index]
        with Image.open(path) as picture:
            image = self.transform(picture.convert("RGB"))
        encoding = self.tokenizer.encode(caption)
        tokens, valid = torch.tensor(encoding.ids), torch.tensor(encoding.attention_mask, dtype=torch.bool)
        words = valid & ~torch.tensor(encoding.special_tokens_mask, dtype=torch.bool)
        order = torch.rand(len(tokens)).masked_fill(~words, 2.0).argsort()
        text_masked = torch.zeros_like(valid)
        text_masked[order[: max(1, round(0.3 * int(words.sum())))]] = True
        cells = torch.zeros(self.side**2, dtype=torch.bool)
        cells[torch.randperm(self.side**2)[: round(0.6 * self.side**2)]] = True
        image_masked = cells.view(self.side, self.side).repeat_interleave(self.cell, 0)
        image_masked = image_masked.repeat_interleave(self.cell, 1).flatten()
        return {
            "image": image,
            "tokens": tokens,
            "token_valid": valid,
            "text_masked": text_masked,
            "image_masked": image_masked,
        }


def rate(data: Captioned, *, batch_size: int, workers: int) -> dict[str, float | None]:
    """Pictures a second, by the clock and (where the work is done in this process) of one core."""
    loader = DataLoader(data, batch_size, shuffle=True, num_workers=workers, drop_last=True)
    batches = iter(loader)
    for _ in range(1 + workers):
        next(batches)
    clock, cpu, pictures = time.perf_counter(), time.process_time(), 0
    for batch in batches:
        pictures += len(batch["image"])
    seconds, busy = time.perf_counter() - clock, time.process_time() - cpu
    return {"per_second": pictures / seconds, "per_core": None if workers else pictures / busy}


def main() -> None:
    """Reads the flags, measures and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--cell", type=int, default=2)
    parser.add_argument("--length", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    shape = {"size": args.size, "patch": args.patch, "cell": args.cell, "length": args.length}
    data = Captioned(args.folder, args.tokenizer, **shape)
    rates = {str(n): rate(data, batch_size=args.batch_size, workers=n) for n in args.workers}
    print(json.dumps({"torch": torch.__version__, "rates": rates}))


if __name__ == "__main__":
    main()
