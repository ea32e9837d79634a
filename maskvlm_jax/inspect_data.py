"""Looks at what a run would train on, before there is a run: what is broken, what is cut, what the model sees.

    python -m maskvlm_jax.inspect_data --config=configs/pretrain.py:data=flickr8k --config.data.root=FOLDER

Takes the config and flags of the run; writes report.json and contact_sheet.png to inspect/NAME, or to --workdir. Of
large sets it looks at 2,000 examples, evenly spaced; --examples=0 looks at all.
"""

import collections
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from maskvlm_jax import buckets, files, host, initial, train
from maskvlm_jax import config as configs
from maskvlm_jax import main as command_line
from maskvlm_jax.data import pipeline, survey
from maskvlm_jax.data.sources import Mixture, Source, open_training_source
from maskvlm_jax.data.tokenizer import Tokenizer
from maskvlm_jax.errors import UserError

_EXAMPLES = flags.DEFINE_integer(
    "examples", 2_000, "examples that are looked at, evenly spaced; 0 = all", lower_bound=0
)

SHOWN = 12  # examples on the contact sheet
NAMED = 5  # examples and words that the report names in the terminal; the file has more
MOST_NAMED = 1_000
LONGEST = 1_024  # tokens of a caption that are counted
COLUMNS, TILE, GAP, TEXT_WIDTH, LINE = 2, 192, 10, 400, 20
INK, PALE, PAPER, MARK = (20, 20, 20), (130, 130, 130), (255, 255, 255), (255, 205, 120)
HATCH = 200, 110  # grey of the lines and between them


def inspect(config: ConfigDict, folder: Path, *, examples: int) -> dict[str, Any]:
    """Looks at the training data of a config; writes the report and the contact sheet, and returns the report.

    Args:
        examples: how many are read; 0 = all.

    Raises:
        UserError: what is wrong with the config, or with the data as a whole.
    """
    configs.check(config)
    initial.check(config)
    source = open_training_source(config.data.to_dict(), config.model.image.image_size)
    drawn = _drawn(source, config.data.get("limit", 0))
    chosen = np.linspace(0, len(drawn) - 1, min(examples or len(drawn), len(drawn))).astype(np.int64)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        facts = pool.map(lambda i: survey.examine(source[int(i)]), drawn[chosen])
        facts = list(tqdm(facts, "examples", len(chosen), unit=" examples"))
    with tempfile.TemporaryDirectory() as workdir:
        tokenizer = initial.tokenizer(config, source, Path(workdir))
    report = {
        "name": config.name,
        "source_sha256": source.fingerprint,
        "expected": len(source) + survey.left_out(source.report),
        "present": len(source),
        "left_out": source.report,
        "trained_on": len(drawn),
        **picture_report(facts, config.model.image.image_size),
        **caption_report(facts, tokenizer, config.model.text.max_length),
    }
    sheet = contact_sheet(config, source, tokenizer, min(SHOWN, len(drawn)))
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "report.json", report)
    Image.fromarray(sheet).save(folder / "contact_sheet.png")
    return report


def _drawn(source: Source, limit: int) -> np.ndarray:
    """The numbers of the examples that a run draws from."""
    ranges = source.ranges if isinstance(source, Mixture) else [range(min(limit or len(source), len(source)))]
    return np.concatenate([np.arange(part.start, part.stop) for part in ranges])


def picture_report(facts: Sequence[survey.Facts], image_size: int) -> dict[str, Any]:
    """Counts of what is broken or there twice, and the sizes of the pictures."""
    broken = [{"id": one.id, "reason": one.reason, "detail": one.detail} for one in facts if one.reason]
    first, repeated = {}, []
    for one in facts:
        if one.width and first.setdefault(one.sha256, one.id) != one.id:
            repeated.append({"id": one.id, "same_as": first[one.sha256]})
    sides = np.array([min(one.width, one.height) for one in facts if one.width], np.int64)
    return {
        "looked_at": len(facts),
        "broken": dict(collections.Counter(row["reason"] for row in broken)),
        "broken_examples": broken[:MOST_NAMED],
        "duplicates": len(repeated),
        "duplicate_examples": repeated[:MOST_NAMED],
        "short_side": survey.spread(sides, survey.SIDE_EDGES),
        "image_size": image_size,
        "smaller_than_image_size": int((sides < image_size).sum()),
    }


def caption_report(facts: Sequence[survey.Facts], tokenizer: Tokenizer, max_length: int) -> dict[str, Any]:
    """How long captions are, how many `max_length` cuts, and what the tokenizer has no token for."""
    special = np.ones(tokenizer.vocab_size, bool)
    special[tokenizer.ordinary_ids] = False

    def inner(text: str) -> np.ndarray:
        """Tokens without those of start and end."""
        tokens, _, valid = tokenizer.encode(text, LONGEST)
        return tokens[1 : int(valid.sum()) - 1]

    lengths, words, unknown, unknown_words = [], [], 0, collections.Counter()
    for caption in (caption for one in facts for caption in one.captions):
        tokens, split = inner(caption), caption.split()
        lengths.append(len(tokens) + 2)
        words.append(len(split))
        if special[tokens].any():
            unknown += int(special[tokens].sum())
            unknown_words.update(word for word in split if special[inner(word)].any())
    lengths = np.array(lengths, np.int64)
    return {
        "captions": len(lengths),
        "caption_words": survey.spread(np.array(words, np.int64), survey.WORD_EDGES),
        "caption_tokens": survey.spread(lengths, survey.WORD_EDGES),  # with those of start and end
        "max_length": max_length,
        "captions_cut": int((lengths > max_length).sum()),
        "tokens": int((lengths - 2).sum()),
        "unknown_tokens": unknown,
        "unknown_words": dict(unknown_words.most_common(MOST_NAMED)),
    }


def contact_sheet(config: ConfigDict, source: Source, tokenizer: Tokenizer, count: int) -> np.ndarray:
    """The first examples of the run's stream: augmented, the same with hidden patches hatched, and the caption.

    Hidden words are marked; where the model sees something else than the mask token in their place, it is named.
    """
    stream = pipeline.train_stream(
        source,
        train.make_example(config, source, tokenizer),
        batch_size=count,
        seed=config.seed,
        start=0,
        stop=1,
        limit=config.data.get("limit", 0),
        workers=0,
        threads=1,
    )
    batch, size = next(stream), config.model.image.image_size
    scale = max(1, round(TILE / size))  # a whole number: every pixel is shown as it is
    tile, rows = scale * size, -(-count // COLUMNS)
    width, height = 2 * (tile + GAP) + TEXT_WIDTH + GAP, tile + GAP
    sheet = Image.new("RGB", (GAP + COLUMNS * width, GAP + rows * height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number in range(count):
        example = {key: value[number] for key, value in batch.items()}
        top, left = GAP + number % rows * height, GAP + number // rows * width
        for pixels in (example["image"], hatched(example["image"], example["image_masked"])):
            sheet.paste(Image.fromarray(pixels).resize((tile, tile), Image.Resampling.NEAREST), (left, top))
            left += tile + GAP
        name, why = source.id(int(example["index"])), pipeline.BROKEN[example["replaced"]]
        draw.text((left, top), f"{name} ({why}: another stands in)" if why else name, PALE, font)
        _draw_words(draw, _words(example, tokenizer), (left, top + LINE + GAP), top + tile - LINE, font)
    return np.asarray(sheet)


def hatched(image: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """`image` (Y, X, 3) with the patches that are hidden, `masked` (N,), hatched."""
    size, grid = len(image), round(len(masked) ** 0.5)
    hidden = masked.reshape(grid, grid).repeat(size // grid, axis=0).repeat(size // grid, axis=1)
    y, x = np.indices((size, size))
    return np.where(hidden[..., None], np.where((x + y) % 8 < 2, *HATCH)[..., None], image).astype(np.uint8)


def _words(example: Mapping[str, np.ndarray], tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """(text, whether it is hidden) of each token between start and end."""
    words = []
    for place in range(1, int(example["token_valid"].sum()) - 1):
        text, seen = (int(example[key][place]) for key in ("tokens", "tokens_masked"))
        hidden = bool(example["text_masked"][place])
        shown = tokenizer.token(text)
        if hidden and seen != tokenizer.mask_id:
            shown += f" (seen: {tokenizer.token(seen)})"
        words.append((shown, hidden))
    return words


def _draw_words(
    draw: ImageDraw.ImageDraw, words: Sequence[tuple[str, bool]], at: tuple[int, int], bottom: int, font
) -> None:
    """Draws words from `at` on, in lines down to `bottom`."""
    (left, y), space = at, draw.textlength(" ", font) + 3
    x = left
    for text, hidden in words:
        length = draw.textlength(text, font)
        if x > left and x + length > left + TEXT_WIDTH:
            x, y = left, y + LINE
        if y > bottom:
            draw.text((x, y), "...", PALE, font)
            return
        if hidden:
            draw.rectangle((x - 2, y, x + length + 2, y + LINE - 2), MARK)
        draw.text((x, y), text, INK, font)
        x += length + space


def text(report: Mapping[str, Any]) -> str:
    """A report in lines for people."""
    looked_at, captions = report["looked_at"], report["captions"]
    share = lambda part, whole: f"{part:,} ({100 * part / max(1, whole):.2f} %)"  # noqa: E731
    lines = [
        f"{report['name']}: {share(report['present'], report['expected'])} of {report['expected']:,} expected examples "
        f"are there, {report['trained_on']:,} are trained on"
    ]
    lines += [f"  {count:,} {reason.replace('_', ' ')}" for reason, count in report["left_out"].items()]
    lines.append(f"looked at {looked_at:,}: {share(sum(report['broken'].values()), looked_at)} broken")
    lines += [f"  {count:,} {reason}" for reason, count in report["broken"].items()]
    lines += [f"    {row['id']}: {row['detail'] or row['reason']}" for row in report["broken_examples"][:NAMED]]
    lines.append(f"duplicates among them: {share(report['duplicates'], looked_at)}")
    lines += [f"    {row['id']} is {row['same_as']}" for row in report["duplicate_examples"][:NAMED]]
    lines += survey.bars("short side in pixels", report["short_side"])
    lines.append(
        f"smaller than the model's {report['image_size']}: {share(report['smaller_than_image_size'], looked_at)}"
    )
    lines += survey.bars("words a caption", report["caption_words"])
    lines += survey.bars("tokens a caption", report["caption_tokens"])
    lines.append(f"captions cut at {report['max_length']} tokens: {share(report['captions_cut'], captions)}")
    lines.append(f"tokens unknown to the tokenizer: {share(report['unknown_tokens'], report['tokens'])}")
    if report["unknown_words"]:
        lines.append("  " + ", ".join(f"{word} {n:,}" for word, n in list(report["unknown_words"].items())[:NAMED]))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit status."""
    host.quiet_libraries()
    host.print_any_text()

    def work() -> None:
        config, _ = command_line.parse(sys.argv if argv is None else argv)
        if config.task not in ("pretrain", "finetune"):
            raise UserError(
                f"config.task is {config.task!r}; give the config of a training, such as configs/pretrain.py"
            )
        folder = buckets.local_folder(flags.FLAGS.workdir or f"inspect/{config.name}", "the report")
        print(text(inspect(config, folder, examples=_EXAMPLES.value)))
        print(f"{folder / 'contact_sheet.png'} shows what the model sees, {folder / 'report.json'} has all of this")

    return command_line.guarded(work)


if __name__ == "__main__":
    command_line.leave(main())
