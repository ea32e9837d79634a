"""How far our encoders are from what PyTorch computes of the same folders.

    PYTHON_WITH_TORCH benchmarks/encoder_parity.py --image FOLDER --text FOLDER --write outputs.npz
    python benchmarks/encoder_parity.py --image FOLDER --text FOLDER --compare outputs.npz

The first needs torch, transformers and NumPy alone; its pictures and words are drawn from a seed. The second prints one
JSON object: the largest difference of the last layer's output, and its largest value, padding left out.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

LENGTHS = (20, 11, 5)


def write(args: argparse.Namespace) -> None:
    """What transformers computes."""
    import torch
    from transformers import AutoModel

    rng, found = np.random.default_rng(0), {}
    if args.image:
        model = AutoModel.from_pretrained(args.image).eval()
        described = json.loads((Path(args.image) / "preprocessor_config.json").read_text())
        found["pixels"] = rng.integers(0, 256, (2, args.pixels, args.pixels, 3), np.uint8)
        x = (found["pixels"] / 255 - np.array(described["image_mean"])) / np.array(described["image_std"])
        x = torch.tensor(x, dtype=torch.float32).permute(0, 3, 1, 2)
        with torch.no_grad():
            found["image"] = model(x, **({"interpolate_pos_encoding": True} if args.resize else {})).last_hidden_state
    if args.text:
        model = AutoModel.from_pretrained(args.text).eval()
        valid = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
        pad = model.config.pad_token_id or 0
        words = rng.integers(pad + 1, model.config.vocab_size, valid.shape)
        found |= {"tokens": np.where(valid, words, pad).astype(np.int32), "valid": valid}
        inputs = (torch.tensor(found["tokens"], dtype=torch.long), torch.tensor(valid, dtype=torch.long))
        with torch.no_grad():
            found["text"] = model(input_ids=inputs[0], attention_mask=inputs[1]).last_hidden_state
    np.savez(args.write, **{name: np.asarray(value) for name, value in found.items()})


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Our encoders on the same inputs, in float32."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from configs import pretrain
    from maskvlm_jax.models.block import BlockSpec
    from maskvlm_jax.models.pretrained import encoders
    from maskvlm_jax.models.text import TextEncoder
    from maskvlm_jax.models.vision import ImageEncoder, normalised
    from maskvlm_jax.runtime.parameters import map_by_path
    from maskvlm_jax.training.train_step import split_model

    outputs, config = np.load(args.compare), pretrain.get_config("size=mini")
    config.init.image, config.init.text = args.image, args.text
    if args.image:
        config.model.image.image_size = outputs["pixels"].shape[1]
    if args.text:
        config.model.text.max_length = outputs["tokens"].shape[1]
    encoders.complete(config, ())
    shared = config.model.shared.to_dict() | {"dtype": "float32"}

    def run(modality: str, kind: type, call: Any) -> np.ndarray:
        spec, rest = BlockSpec.split(config.model[modality].to_dict() | shared)
        found = encoders.read(config, modality).parameters
        graphdef, params = split_model(kind(spec, **rest, rngs=nnx.Rngs(0)))
        params = map_by_path(lambda path, own: jnp.asarray(found.get(path, own)), params)
        return np.asarray(jax.jit(lambda params: call(nnx.merge(graphdef, params)))(params))

    result = {}
    if args.image:
        ours = run("image", ImageEncoder, lambda encoder: encoder(normalised(outputs["pixels"])))
        result["image"] = _distance(ours, outputs["image"])
    if args.text:
        tokens, valid = jnp.asarray(outputs["tokens"]), jnp.asarray(outputs["valid"])
        ours = run("text", TextEncoder, lambda encoder: encoder(tokens, valid))
        result["text"] = _distance(ours[outputs["valid"]], outputs["text"][outputs["valid"]])
    return result


def _distance(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    return {"difference": float(np.abs(ours - theirs).max()), "largest": float(np.abs(theirs).max())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="", help="a folder of transformers")
    parser.add_argument("--text", default="", help="a folder of transformers")
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--resize", action="store_true", help="the image encoder must be asked to resize its positions")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", help="the file of PyTorch's outputs that is made")
    mode.add_argument("--compare", help="the file of PyTorch's outputs that is read")
    args = parser.parse_args()
    if args.write:  # without a module of ours, where their packages may not be
        write(args)
        return 0
    from benchmarks.command import finish

    return finish(lambda: compare(args), json.dumps, as_json=True)


if __name__ == "__main__":
    sys.exit(main())
