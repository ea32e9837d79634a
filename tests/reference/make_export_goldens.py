"""Writes exports/NAME/golden.npz: what PyTorch computes from each export, by torch_model.py and by transformers.

Run by hand in an environment of its own, after `python -m tests.reference.exporting`; tests only read what it wrote:

    pip install torch==2.14.1 transformers==5.24.0 safetensors==0.8.0 numpy==2.4.6
    python tests/reference/make_export_goldens.py

pixels uint8 (3, Y, X, 3), tokens and valid (3, L), and as far as the model has them, in float32: image_embedding and
text_embedding (3, E), match (3,), words (3, L, V) of torch_model.py; image_features (3, S, D), text_features (3, L, D)
of transformers. torch_model is the sha256 of the file that was run.
"""

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import torch
import transformers

FOLDER = Path(__file__).parent / "exports"
TORCH_MODEL = Path(__file__).parents[2] / "maskvlm_jax" / "serving" / "exports" / "torch_model.py"
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def golden(folder: Path) -> dict[str, np.ndarray]:
    """What PyTorch computes from one export."""
    config = json.loads((folder / "config.json").read_text())["model"]
    side, length = config["image"]["image_size"], config["text"]["max_length"]
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    tokens = random.integers(5, 30, (3, length))
    valid = np.arange(length) < np.array([length, 7, 4])[:, None]
    found = {"pixels": pixels, "tokens": np.where(valid, tokens, 0).astype(np.int32), "valid": valid}
    image = torch.tensor((np.float32(pixels) / 255 - MEAN) / STD).permute(0, 3, 1, 2)
    text = torch.tensor(found["tokens"]).long(), torch.tensor(valid)
    found["torch_model"] = np.array(hashlib.sha256(TORCH_MODEL.read_bytes()).hexdigest())
    spec = importlib.util.spec_from_file_location("torch_model", TORCH_MODEL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.MaskVLM.load(folder)
    if config["embed"]:
        found["image_embedding"], found["text_embedding"] = model.encode_images(image), model.encode_texts(*text)
    found["words"] = model.predict_words(image, *text)
    if "objectives.matching.to_match.weight" in model.state_dict():
        found["match"] = model.match(image, *text)
    common = {"add_pooling_layer": False, "attn_implementation": "eager"}
    if (folder / "image_encoder").is_dir():
        encoder = transformers.AutoModel.from_pretrained(folder / "image_encoder", **common).eval()
        assert type(encoder).__name__ == "ViTModel"
        found["image_features"] = encoder(image).last_hidden_state
    if (folder / "text_encoder").is_dir():
        encoder = transformers.AutoModel.from_pretrained(folder / "text_encoder", **common).eval()
        assert type(encoder).__name__ == "BertModel"
        found["text_features"] = encoder(text[0], attention_mask=text[1].long()).last_hidden_state
    return found


if __name__ == "__main__":
    with torch.no_grad():
        for folder in sorted(FOLDER.iterdir()):
            np.savez(folder / "golden.npz", **golden(folder))
            print(folder.name)
