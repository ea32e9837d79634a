"""Figures: pictures rebuilt from their visible patches and a caption, captions rebuilt from their words and a picture;
where masks are chosen on the device, what they hide.

Rebuilt patches are pasted into the picture; visible ones stay as they are (MaskVLM, arXiv 2208.02131, Fig. 5).
"""

import dataclasses

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskvlm_jax.data import transforms
from maskvlm_jax.data.evaluation_set import EvaluationSet
from maskvlm_jax.data.tokenizer import Tokenizer
from maskvlm_jax.evaluators import base, mask_sheet, probes
from maskvlm_jax.evaluators.predictor import Predictor
from maskvlm_jax.objectives.base import PredictsFeatures, PredictsPixels, PredictsWords
from maskvlm_jax.runtime import sheets
from maskvlm_jax.runtime.sheets import INK, PALE, PAPER

TILE, GAP, HEADER, MASK_GREY = 160, 10, 24, 128
RIGHT, WRONG = (0, 120, 50), (190, 30, 30)


class Evaluator(base.Evaluator):
    """Sheets of `figures` examples; 0 = none. It scores nothing."""

    def figures(self, predictor: Predictor, split: str) -> base.Figures:
        size = self.options["batch_size"]
        count, data, drawn, pages = min(self.options["figures"], size), self.run.data(split), {}, {}
        if count and (predictor.offers(PredictsPixels) or predictor.offers(PredictsFeatures)):
            drawn["reconstruction"] = reconstructions(predictor, data, count=count, batch_size=size)
        if count and predictor.offers(PredictsWords):
            texts = masked_texts(predictor, data, self.run.tokenizer, count=count, batch_size=size)
            drawn["masked_text"] = masked_text_sheet(data, texts)
            pages["masked_text"] = masked_text_table(data, texts)
        if count and self.run.config.masking.masker:
            drawn["masks"] = mask_sheet.sheet(predictor, data, self.run.tokenizer, count=count, batch_size=size)
        return base.Figures(drawn, pages)


@dataclasses.dataclass(frozen=True)
class Word:
    """A token as it is shown; `masked` where it was predicted, `right` where the prediction was."""

    text: str
    masked: bool
    right: bool


def reconstructions(predictor: Predictor, data: EvaluationSet, *, count: int, batch_size: int) -> np.ndarray:
    """A sheet, one row a picture: original | masked | rebuilt with its caption | rebuilt with another's.

    A model that predicts features (MAMO) shows, for each hidden patch, the patch of the other pictures whose feature is
    the nearest.
    """
    pictures, patch = np.arange(min(count, len(data.images))), None
    shown = np.arange(min(batch_size, len(data.images)))  # a whole batch: more candidates for a patch
    others, first = data.other_pictures(), data.first_captions
    rebuilt = {}
    for reads in ("matched", "shuffled"):
        batch = next(probes.batches(data, first[shown], batch_size, of="image", reads=reads))
        patches, ids = _rebuilt_patches(predictor, batch)
        patch = patches.shape[2]
        rebuilt[reads] = [paste(data.images[i], patches[i], ids[i]) for i in pictures]
    rows = []
    for i in pictures:
        grey = np.full((int(data.image_masked[i].sum()), patch, patch, 3), MASK_GREY, np.uint8)
        masked = paste(data.images[i], grey, np.flatnonzero(data.image_masked[i]))
        tiles = [data.images[i], masked, rebuilt["matched"][i], rebuilt["shuffled"][i]]
        rows.append((tiles, data.captions[first[i]], data.captions[first[others[i]]]))
    return _reconstruction_sheet(rows)


def _rebuilt_patches(predictor: Predictor, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(B, M, p, p, 3) uint8 patches in the place of the hidden ones, and their numbers (B, M)."""
    if predictor.offers(PredictsPixels):
        pred_BMF, _, positions = predictor.fetch(probes.masked_image, batch)
        patch = round((pred_BMF.shape[-1] / 3) ** 0.5)
        return transforms.denormalise(pred_BMF.reshape(*pred_BMF.shape[:2], patch, patch, 3)), positions.ids_BM
    pred_BMD, _, positions = predictor.fetch(probes.masked_feature, batch)
    feature_BSD, _ = predictor.encode_image(batch["image"])
    count = batch["image_masked"].shape[1]
    feature_BND = feature_BSD[:, feature_BSD.shape[1] - count :]
    feature_BND = feature_BND / np.linalg.norm(feature_BND, axis=-1, keepdims=True)
    patches_BN = _cut(batch["image"], count)
    chosen = []
    for i, pred_MD in enumerate(pred_BMD):
        # Padding repeats a picture, whose own patches must not be candidates.
        others = batch["example_valid"] & (np.arange(len(pred_BMD)) != i)
        others = others if others.any() else np.ones_like(others)
        nearest = np.argmax(pred_MD @ feature_BND[others].reshape(-1, feature_BND.shape[-1]).T, axis=1)
        chosen.append(patches_BN[others].reshape(-1, *patches_BN.shape[2:])[nearest])
    return np.stack(chosen), positions.ids_BM


def _cut(images: np.ndarray, count: int) -> np.ndarray:
    """(B, count, p, p, 3): square pictures cut into `count` patches, row by row."""
    side = round(count**0.5)
    patch = images.shape[1] // side
    cut = images.reshape(len(images), side, patch, side, patch, 3).swapaxes(2, 3)
    return cut.reshape(len(images), count, patch, patch, 3)


def paste(image: np.ndarray, patches: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """`image` with `patches` (M, p, p, 3) at the patch numbers `ids`, counted row by row."""
    image, size = image.copy(), patches.shape[1]
    grid = image.shape[1] // size
    for pixels, number in zip(patches, ids, strict=True):
        row, column = divmod(int(number), grid)
        image[row * size : (row + 1) * size, column * size : (column + 1) * size] = pixels
    return image


def masked_texts(
    predictor: Predictor, data: EvaluationSet, tokenizer: Tokenizer, *, count: int, batch_size: int
) -> list[dict[str, list[Word]]]:
    """For each picture its first caption with masked tokens predicted from the matched, a wrong and no picture."""
    pictures, first = np.arange(min(count, len(data.images))), data.first_captions
    results = [{} for _ in pictures]
    for reads in probes.OTHERS:
        batch = next(probes.batches(data, first[pictures], batch_size, of="text", reads=reads))
        _, predicted_BM, _, positions = predictor.fetch(probes.masked_text, batch)
        for i in pictures:
            tokens = data.text["tokens"][first[i]]
            valid = positions.valid_BM[i]
            filled = dict(zip(positions.ids_BM[i][valid].tolist(), predicted_BM[i][valid].tolist(), strict=True))
            length = int(data.text["token_valid"][first[i]].sum())
            results[i][reads] = [
                Word(tokenizer.token(filled.get(p, tokens[p])), p in filled, filled.get(p, tokens[p]) == tokens[p])
                for p in range(1, length - 1)
            ]
    return results


def masked_text_table(data: EvaluationSet, results: list[dict[str, list[Word]]]) -> str:
    """Markdown: masked tokens are bold, wrong ones struck through."""
    lines = ["| caption | with its picture | with a wrong picture | without a picture |", "|---|---|---|---|"]
    for caption, filled in zip((data.captions[t] for t in data.first_captions), results, strict=False):
        cells = [" ".join(_markdown(word) for word in filled[reads]) for reads in probes.OTHERS]
        lines.append("| " + " | ".join([caption.replace("|", "\\|"), *cells]) + " |")
    return "\n".join(lines) + "\n"


def masked_text_sheet(data: EvaluationSet, results: list[dict[str, list[Word]]]) -> np.ndarray:
    """A sheet, one row a picture: the picture, its caption, and the three fillings, masked tokens in colour."""
    width = TILE + 2 * GAP + 760
    sheet = Image.new("RGB", (width, GAP + len(results) * (TILE + GAP)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    titles = {"matched": "its picture", "shuffled": "a wrong picture", "empty": "no picture"}
    for row, filled in enumerate(results):
        top, left = GAP + row * (TILE + GAP), TILE + 2 * GAP
        sheet.paste(_tile(data.images[row]), (GAP, top))
        draw.text((left, top), data.captions[data.first_captions[row]], INK, font)
        for line, (reads, title) in enumerate(titles.items()):
            y = top + 34 + line * 42
            draw.text((left, y), f"{title}:", PALE, font)
            box = left + 130, y, width - GAP, y + 18
            sheets.draw_words(draw, map(_coloured, filled[reads]), box, font, line=18)
    return np.asarray(sheet)


def _markdown(word: Word) -> str:
    text = word.text.replace("|", "\\|")
    return text if not word.masked else f"**{text}**" if word.right else f"~~{text}~~"


def _coloured(word: Word) -> sheets.Word:
    return sheets.Word(word.text, (RIGHT if word.right else WRONG) if word.masked else INK)


def _reconstruction_sheet(rows: list[tuple[list[np.ndarray], str, str]]) -> np.ndarray:
    titles = ("original", "masked", "rebuilt, its caption", "rebuilt, another caption")
    row_height = TILE + 58
    sheet = Image.new("RGB", (GAP + 4 * (TILE + GAP), HEADER + len(rows) * row_height), PAPER)
    draw, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(14), ImageFont.load_default(12)
    for column, title in enumerate(titles):
        draw.text((GAP + column * (TILE + GAP), 4), title, INK, font)
    for row, (tiles, own, other) in enumerate(rows):
        top = HEADER + row * row_height
        for column, tile in enumerate(tiles):
            sheet.paste(_tile(tile), (GAP + column * (TILE + GAP), top))
        draw.text((GAP, top + TILE + 6), _clip("caption: " + own, draw, sheet.width - 2 * GAP, small), INK, small)
        other = _clip("another: " + other, draw, sheet.width - 2 * GAP, small)
        draw.text((GAP, top + TILE + 24), other, (120, 120, 120), small)
    return np.asarray(sheet)


def _clip(text: str, draw: ImageDraw.ImageDraw, width: int, font) -> str:
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "...", font) > width:
        text = text[:-1]
    return text + "..."


def _tile(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image).resize((TILE, TILE), Image.Resampling.NEAREST)
