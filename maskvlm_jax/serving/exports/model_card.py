"""The model card of an export: what the model is, how well it does and by which protocol, how it is used.

All of it is taken from the run's own record. The front matter is what the Hugging Face hub reads.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

# Of what a number must be quoted with, what the card says elsewhere.
_ELSEWHERE = ("checkpoint", "run", "trained_on", "initialised_from", "step", "parameters_sha256", "stream", "weights")

_JAX = """\
To score it, to tune it or to go on from it, with [maskvlm_jax]:

```sh
python -m maskvlm_jax.main --config=configs/evaluate.py --config.checkpoint=FOLDER
```
"""
_ENCODERS = """\
Its encoders, with transformers; this is the sequence before fusion and contrastive space:

```python
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

{lines}
```
"""
_ENCODER_LINES = {
    "image_encoder": """\
processor = AutoImageProcessor.from_pretrained("FOLDER/image_encoder")
image_encoder = AutoModel.from_pretrained("FOLDER/image_encoder", add_pooling_layer=False)""",
    "text_encoder": """\
tokenizer = AutoTokenizer.from_pretrained("FOLDER/text_encoder")
text_encoder = AutoModel.from_pretrained("FOLDER/text_encoder", add_pooling_layer=False)""",
}
_TORCH = """\
All of it, in PyTorch, with `torch_model.py` of this folder, which needs nothing but torch and safetensors:

```python
from torch_model import MaskVLM
from transformers import AutoImageProcessor, AutoTokenizer

model = MaskVLM.load("FOLDER")
tokenizer, processor = AutoTokenizer.from_pretrained("FOLDER/tokenizer"), AutoImageProcessor.from_pretrained("FOLDER")
words = tokenizer(captions, padding=True, truncation=True, max_length={length}, return_tensors="pt")
pixels = processor(images, return_tensors="pt").pixel_values
{calls}
```
"""
_PROGRAMS = """\
As programs to be served, {names}, with a batch of any size, without this project:

```python
from jax import export
from safetensors.numpy import load_file

program = export.deserialize(open("FOLDER/{first}", "rb").read())
program.call(load_file("FOLDER/model.safetensors"), {inputs})  # {shapes}
```
"""


def text(
    config: ConfigDict,
    record: Mapping[str, Any],
    result: Mapping[str, Any] | None,
    folder: Path,
    *,
    parameters: int,
    embeds: bool,
) -> str:
    """The card, in Markdown.

    Args:
        record: where the parameters come from.
        result: the final scores of these parameters; None if there are none.
        parameters: how many there are.
        embeds: whether its contrastive space was trained.
        folder: of the export, all but the card.
    """
    parts = [_front_matter(embeds), f"# {record['run']}", _what(config, record, parameters), "## Scores"]
    parts += [_scores(result), "## Use", *_uses(config, embeds, folder), "## What it has seen", _seen(config, record)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _front_matter(embeds: bool) -> str:
    tags = ["vision-language", "image-text-retrieval", "masked-modelling", "jax"]
    lines = ["library_name: maskvlm_jax", "tags:", *(f"- {tag}" for tag in tags)]
    lines += ["pipeline_tag: zero-shot-image-classification"] if embeds else []
    return "\n".join(["---", *lines, "---"])


def _what(config: ConfigDict, record: Mapping[str, Any], parameters: int) -> str:
    model = config.model
    losses = ", ".join(label.replace("_", " ") for label, one in config.objectives.items() if one.weight)
    fused = "" if model.fusion.kind == "none" else f", {model.fusion.kind} fusion of {model.fusion.depth} blocks"
    average = " It is the moving average of the parameters." if record["weights"] == "ema" else ""
    image, text = (f"{one.depth} block{'s' * (one.depth != 1)}" for one in (model.image, model.text))
    alone = model.text.kind == "none"
    words = "" if alone else f", a text encoder of {text} over at most {model.text.max_length} tokens"
    return (
        f"A {'model of pictures' if alone else 'vision-language model'} of {parameters:,} parameters: an image encoder "
        f"of {image} of width {model.image.width} over {model.image.image_size} x {model.image.image_size} "
        f"pixels{words}{fused}. Trained by "
        f"[maskvlm_jax] with the losses {losses}; this is step {record['step']:,} of {config.steps:,}, at batches of "
        f"{config.batch_size}.{average}\n\n[maskvlm_jax]: MaskVLM (Kwon et al., ICLR 2023, arXiv 2208.02131) in JAX"
    )


def _scores(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "None are recorded here of these parameters; `configs/evaluate.py` takes them, see below."
    protocol = {key: value for key, value in result["protocol"].items() if key not in _ELSEWHERE}
    rows = [f"| {name} | {value:.4g} |" for name, value in result["metrics"].items()]
    said = ", ".join(f"{key} {json.dumps(value)}" for key, value in protocol.items())
    return "\n".join(["| metric | value |", "|---|---|", *rows, "", f"By this protocol: {said}."])


def _uses(config: ConfigDict, embeds: bool, folder: Path) -> Iterator[str]:
    yield _JAX
    if lines := [lines for name, lines in _ENCODER_LINES.items() if (folder / name).is_dir()]:
        yield _ENCODERS.format(lines="\n".join(lines))
    if (folder / "torch_model.py").is_file():
        names = {one.name for one in config.objectives.values() if one.weight}
        calls = ["model.encode_images(pixels), model.encode_texts(words.input_ids, words.attention_mask)"]
        calls = calls * embeds
        arguments = "(pixels, words.input_ids, words.attention_mask)"
        calls += [f"model.match{arguments}"] * ("matching" in names)
        calls += [f"model.predict_words{arguments}"] * bool(names & {"masked_text", "distilled_masked_text"})
        yield _TORCH.format(length=config.model.text.max_length, calls="\n".join(calls))
    if programs := sorted(path.name for path in folder.glob("*.stablehlo")):
        side, length = config.model.image.image_size, config.model.text.max_length
        pixels = f"uint8 (b, {side}, {side}, 3)"
        whole = programs[0] == "match.stablehlo"
        yield _PROGRAMS.format(
            names=", ".join(f"`{name}`" for name in programs),
            first=programs[0],
            inputs="pixels, tokens, valid" if whole else "pixels",
            shapes=f"{pixels}, int32 and bool (b, {length})" if whole else pixels,
        )


def _seen(config: ConfigDict, record: Mapping[str, Any]) -> str:
    start = record["initialised_from"]
    if isinstance(start, Mapping):
        origin = "Its encoders started from " + " and ".join(
            f"`{one['name']}` ({one['family']})" for one in start.values()
        )
        origin += "; what these were trained on is theirs to say, and so is their licence."
    else:
        origin = "It started from random parameters." if start == "random" else f"It started from `{start}`."
    return (
        f"Trained on {record['trained_on']}. {origin} The licence of the pictures and captions, and what may be done "
        "with weights that were trained on them, is not recorded here: add `license` to the head of this file.\n\n"
        f"sha256 of the parameters: `{record['parameters_sha256']}`"
    )
