"""Looks at what a run would train on, before there is a run: what is broken, what is cut, what the model sees.

See `maskvlm_jax.inspect_data`, the command.
"""

import collections
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from maskvlm_jax.data import examples, run_tokenizer, training_stream
from maskvlm_jax.data.sources.opening import open_training_source
from maskvlm_jax.data.sources.training_set import TrainingSet
from maskvlm_jax.data.tokenizer import Tokenizer
from maskvlm_jax.prepare import survey
from maskvlm_jax.runtime import files, host, sheets
from maskvlm_jax.settings import rules as configs

SHOWN = 12  # examples on the contact sheet
NAMED = 5  # examples and words that the report names in the terminal; the file has more
MOST_NAMED = 1_000
LONGEST = 1_024  # tokens of a caption that are counted
COLUMNS, TILE, GAP, TEXT_WIDTH, LINE = 2, 192, 10, 400, 20
MARK = (255, 205, 120)
HATCH = 200, 110  # grey of the lines and between them


def inspect(config: ConfigDict, folder: Path, *, examples: int) -> dict[str, Any]:
    """Looks at the training data of a config; writes the report and the contact sheet, and returns the report.

    Args:
        examples: how many are read; 0 = all.

    Raises:
        UserError: what is wrong with the config, or with the data as a whole.
    """
    configs.check(config)
    source = open_training_source(config.data.to_dict(), config.model.image.image_size)
    drawn = np.concatenate([np.arange(part.start, part.stop) for part in source.ranges])
    chosen = np.linspace(0, len(drawn) - 1, min(examples or len(drawn), len(drawn))).astype(np.int64)
    with ThreadPoolExecutor(host.cores()) as pool:
        facts = pool.map(lambda i: survey.examine(source[int(i)]), drawn[chosen])
        facts = list(tqdm(facts, "examples", len(chosen), unit=" examples"))
    with tempfile.TemporaryDirectory() as workdir:
        tokenizer = run_tokenizer.tokenizer_of(config, source, Path(workdir))
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


def contact_sheet(config: ConfigDict, source: TrainingSet, tokenizer: Tokenizer, count: int) -> np.ndarray:
    """The first examples of the run's stream: augmented, the same with hidden patches hatched, and the caption.

    Hidden words are marked; where the model sees something else than the mask token in their place, it is named.
    """
    stream = training_stream.train_stream(
        source,
        examples.make_example(config, source, tokenizer),
        batch_size=count,
        seed=config.seed,
        start=0,
        stop=1,
        workers=0,
        threads=1,
    )
    batch, size = next(stream), config.model.image.image_size
    scale = max(1, round(TILE / size))  # a whole number: every pixel is shown as it is
    tile, rows = scale * size, -(-count // COLUMNS)
    width, height = 2 * (tile + GAP) + TEXT_WIDTH + GAP, tile + GAP
    sheet = Image.new("RGB", (GAP + COLUMNS * width, GAP + rows * height), sheets.PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number in range(count):
        example = {key: value[number] for key, value in batch.items()}
        top, left = GAP + number % rows * height, GAP + number // rows * width
        for pixels in (example["image"], hatched(example["image"], example["image_masked"])):
            sheet.paste(Image.fromarray(pixels).resize((tile, tile), Image.Resampling.NEAREST), (left, top))
            left += tile + GAP
        name, why = source.id(int(example["index"])), training_stream.BROKEN[example["replaced"]]
        draw.text((left, top), f"{name} ({why}: another stands in)" if why else name, sheets.PALE, font)
        box = left, top + LINE + GAP, left + TEXT_WIDTH, top + tile - LINE
        sheets.draw_words(draw, _words(example, tokenizer), box, font, line=LINE)
    return np.asarray(sheet)


def hatched(image: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """`image` (Y, X, 3) with the patches that are hidden, `masked` (N,), hatched."""
    size, grid = len(image), round(len(masked) ** 0.5)
    hidden = masked.reshape(grid, grid).repeat(size // grid, axis=0).repeat(size // grid, axis=1)
    y, x = np.indices((size, size))
    return np.where(hidden[..., None], np.where((x + y) % 8 < 2, *HATCH)[..., None], image).astype(np.uint8)


def _words(example: Mapping[str, np.ndarray], tokenizer: Tokenizer) -> list[sheets.Word]:
    """Each token between start and end; hidden ones are marked."""
    words = []
    for place in range(1, int(example["token_valid"].sum()) - 1):
        text, seen = (int(example[key][place]) for key in ("tokens", "tokens_masked"))
        hidden = bool(example["text_masked"][place])
        shown = tokenizer.token(text)
        if hidden and seen != tokenizer.mask_id:
            shown += f" (seen: {tokenizer.token(seen)})"
        words.append(sheets.Word(shown, mark=MARK if hidden else None))
    return words


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
