"""Writes encoders/NAME/: tiny random encoders as model libraries save them, each with what torch computes from it.

Run by hand with Python 3.11, in an environment of its own; the tests only read what it wrote:

    pip install torch==2.14.1 transformers==5.24.0 timm==1.0.31 safetensors==0.8.0 numpy==2.4.6
    python tests/reference/make_encoder_goldens.py

A folder holds config.json and model.safetensors (google_npz/: google_npz.npz in the layout of Google's AugReg files),
image encoders of transformers preprocessor_config.json too, and golden.npz, all computed in float32:
image encoders: pixels_N uint8 (2, N, N, 3) and output_N (2, tokens, 16) for N = 16, the size of the model, and 24;
text encoders: tokens (3, 9), valid (3, 9), output (3, 9, 16), and logits (3, 9, 40) of a model that has them.
An output is the last hidden state, every position of it after the final norm. Folders of REFUSED hold no golden.
"""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

import numpy as np
import timm
import torch
import transformers as hf
from safetensors.torch import save_file
from torch import nn

FOLDER = Path(__file__).parent / "encoders"
WIDTH, HEADS, DEPTH, BATCH, PIXELS = 16, 2, 2, 2, 16
LENGTHS = (9, 6, 4)
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

BASE = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
MLP = {**BASE, "intermediate_size": 2 * WIDTH}
IMAGE = {"image_size": PIXELS, "patch_size": 4}
VIT = {**MLP, **IMAGE, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
DECODER = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
MAE = {**VIT, **{f"decoder_{key}": value for key, value in DECODER.items()}}
DINO = {**BASE, **IMAGE, "mlp_ratio": 2}
WORDS = {"vocab_size": 40, "max_position_embeddings": 20}
CLIP_TEXT = {**WORDS, "bos_token_id": 38, "eos_token_id": 39, "pad_token_id": 39}
BERT = {**MLP, **WORDS}
MPNET = {**BERT, "max_position_embeddings": 22, "pad_token_id": 1}
ROBERTA = {**MPNET, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
DISTILBERT = {**WORDS, "dim": WIDTH, "n_layers": DEPTH, "n_heads": HEADS, "hidden_dim": 2 * WIDTH}
TIMM = {"img_size": PIXELS, "patch_size": 4, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "mlp_ratio": 2}


def plain(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model(images).last_hidden_state


def interpolated(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model.base_model(images, interpolate_pos_encoding=True).last_hidden_state


def unshuffled(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """ViTMAE, which hides and shuffles patches by the order of the noise: all of them, in their order."""
    model.vit.config.mask_ratio = 0.0
    patches = images.shape[-1] // 4 * (images.shape[-2] // 4)
    noise = torch.arange(patches).expand(len(images), -1).float()
    return model.vit(images, noise=noise, interpolate_pos_encoding=True).last_hidden_state


def normed(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """CLIP, which applies its final norm to the class token only: to all."""
    model = getattr(model, "vision_model", model)
    return model.post_layernorm(model(images, interpolate_pos_encoding=True).last_hidden_state)


# name: class, configuration, mean and deviation of the pixels, what computes the output
IMAGE_MODELS = {
    "vit": (hf.ViTModel, hf.ViTConfig(**VIT), HALF, interpolated),
    "vit_for_classification": (hf.ViTForImageClassification, hf.ViTConfig(**VIT, num_labels=3), HALF, interpolated),
    "deit": (hf.DeiTModel, hf.DeiTConfig(**VIT), IMAGENET, interpolated),
    "vit_mae": (hf.ViTMAEForPreTraining, hf.ViTMAEConfig(**MAE), IMAGENET, unshuffled),
    "dinov2": (hf.Dinov2Model, hf.Dinov2Config(**DINO), IMAGENET, plain),
    "dinov2_with_registers": (
        hf.Dinov2WithRegistersModel,
        hf.Dinov2WithRegistersConfig(**DINO, num_register_tokens=3),
        IMAGENET,
        plain,
    ),
    "clip_vision": (hf.CLIPVisionModel, hf.CLIPVisionConfig(**MLP, **IMAGE, hidden_act="quick_gelu"), OPENAI, normed),
    "clip_vision_laion": (
        hf.CLIPModel,
        hf.CLIPConfig(
            vision_config={**MLP, **IMAGE, "hidden_act": "gelu"},
            text_config={**MLP, **CLIP_TEXT, "hidden_size": 8, "num_hidden_layers": 1, "hidden_act": "gelu"},
            projection_dim=8,
        ),
        OPENAI,
        normed,
    ),
    "siglip_vision": (
        hf.SiglipVisionModel,
        hf.SiglipVisionConfig(**MLP, **IMAGE, hidden_act="gelu_pytorch_tanh"),
        HALF,
        interpolated,
    ),
}
TEXT_MODELS = {
    "bert": (hf.BertModel, hf.BertConfig(**BERT)),
    "bert_mlm": (hf.BertForMaskedLM, hf.BertConfig(**BERT)),
    "roberta": (hf.RobertaModel, hf.RobertaConfig(**ROBERTA)),
    "roberta_mlm": (hf.RobertaForMaskedLM, hf.RobertaConfig(**ROBERTA)),
    "distilbert": (hf.DistilBertModel, hf.DistilBertConfig(**DISTILBERT)),
}
TIMM_MODELS = {
    "timm_vit": ("vit_tiny_patch16_224", TIMM),
    "timm_vit_registers": (
        "vit_small_patch14_reg4_dinov2",
        {**TIMM, "reg_tokens": 2, "no_embed_class": True, "init_values": 1e-5},
    ),
}
REFUSED = {
    "beit": (hf.BeitModel, hf.BeitConfig(**VIT, vocab_size=40)),
    "mpnet": (hf.MPNetModel, hf.MPNetConfig(**MPNET)),
    "dinov2_swiglu": (hf.Dinov2Model, hf.Dinov2Config(**DINO, use_swiglu_ffn=True)),
    "clip_text": (hf.CLIPTextModel, hf.CLIPTextConfig(**MLP, **CLIP_TEXT)),
}


def randomise(model: nn.Module) -> nn.Module:
    """Every parameter random, biases and norms too, so that each takes part in the output."""
    for name, value in model.named_parameters():
        uniform = 2 * torch.rand(value.shape) - 1
        if name.endswith("bias"):
            value.data = 0.3 * uniform
        elif name.endswith("weight") and value.ndim == 1:  # of a norm
            value.data = 1 + 0.3 * uniform
        elif "lambda" in name or "gamma" in name:  # of a layer scale
            value.data = 1 + 0.5 * uniform
        else:
            value.data = 0.5 * uniform
    return model.eval()


def build(seed: int, kind: type, config: hf.PreTrainedConfig) -> hf.PreTrainedModel:
    torch.manual_seed(seed)
    return randomise(kind._from_config(config, attn_implementation="eager"))


def save(name: str, model: hf.PreTrainedModel) -> None:
    model.save_pretrained(FOLDER / name)
    for path in (FOLDER / name).iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def image_golden(name: str, run: Callable[[torch.Tensor], torch.Tensor], pixel_range: tuple) -> None:
    mean, std = pixel_range
    arrays = {}
    for size in (PIXELS, 24):
        pixels = torch.randint(0, 256, (BATCH, size, size, 3), dtype=torch.uint8)
        images = (pixels.double() / 255 - torch.tensor(mean).double()) / torch.tensor(std).double()
        arrays |= {f"pixels_{size}": pixels, f"output_{size}": run(images.float().permute(0, 3, 1, 2))}
    write_golden(name, arrays)


def text_golden(name: str, model: hf.PreTrainedModel) -> None:
    valid = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    tokens = torch.randint(2, 40, valid.shape).where(valid, model.config.pad_token_id)
    arrays = {"tokens": tokens.int(), "valid": valid}
    arrays["output"] = model.base_model(tokens, attention_mask=valid.long()).last_hidden_state
    if model.base_model is not model:
        arrays["logits"] = model(tokens, attention_mask=valid.long()).logits
    write_golden(name, arrays)


def write_golden(name: str, arrays: dict[str, torch.Tensor]) -> None:
    np.savez_compressed(FOLDER / name / "golden.npz", **{key: value.numpy() for key, value in arrays.items()})


def google_arrays(model: hf.ViTModel) -> dict[str, torch.Tensor]:
    """The weights of a ViT, with a random head, under Google's names and in its shapes."""

    def linear(name: str, layer: nn.Linear, inner: tuple = (WIDTH,), outer: tuple = (WIDTH,)) -> dict:
        return {f"{name}/kernel": layer.weight.T.reshape(*inner, *outer), f"{name}/bias": layer.bias.reshape(outer)}

    def norm(name: str, layer: nn.LayerNorm) -> dict:
        return {f"{name}/scale": layer.weight, f"{name}/bias": layer.bias}

    heads = (HEADS, WIDTH // HEADS)
    patches = model.embeddings.patch_embeddings.projection
    arrays = {
        "cls": model.embeddings.cls_token,
        "embedding/kernel": patches.weight.permute(2, 3, 1, 0),
        "embedding/bias": patches.bias,
        "Transformer/posembed_input/pos_embedding": model.embeddings.position_embeddings,
        **norm("Transformer/encoder_norm", model.layernorm),
        **linear("head", randomise(nn.Linear(WIDTH, 3)), outer=(3,)),
    }
    for index, layer in enumerate(model.layers):
        block = f"Transformer/encoderblock_{index}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        arrays |= norm(f"{block}/LayerNorm_0", layer.layernorm_before)
        arrays |= linear(f"{attention}/query", layer.attention.q_proj, outer=heads)
        arrays |= linear(f"{attention}/key", layer.attention.k_proj, outer=heads)
        arrays |= linear(f"{attention}/value", layer.attention.v_proj, outer=heads)
        arrays |= linear(f"{attention}/out", layer.attention.o_proj, inner=heads)
        arrays |= norm(f"{block}/LayerNorm_2", layer.layernorm_after)
        arrays |= linear(f"{block}/MlpBlock_3/Dense_0", layer.mlp.fc1, outer=(2 * WIDTH,))
        arrays |= linear(f"{block}/MlpBlock_3/Dense_1", layer.mlp.fc2, inner=(2 * WIDTH,))
    return arrays


def write_google(seed: int) -> None:
    model = build(seed, hf.ViTModel, hf.ViTConfig(**{**VIT, "layer_norm_eps": 1e-6}))
    (FOLDER / "google_npz").mkdir(parents=True)
    image_golden("google_npz", lambda images: interpolated(model, images), HALF)
    arrays = {key: np.ascontiguousarray(value.numpy()) for key, value in google_arrays(model).items()}
    np.savez_compressed(FOLDER / "google_npz" / "google_npz.npz", **arrays)


def write_timm(name: str, architecture: str, arguments: dict) -> None:
    model = randomise(timm.create_model(architecture, num_classes=0, dynamic_img_size=True, **arguments))
    (FOLDER / name).mkdir(parents=True)
    save_file(model.state_dict(), FOLDER / name / "model.safetensors", metadata={"format": "pt"})
    pretrained = {"mean": HALF[0], "std": HALF[1], "input_size": (3, PIXELS, PIXELS)}
    config = {"architecture": architecture, "num_classes": 0, "num_features": WIDTH, "global_pool": "token"}
    write_json(FOLDER / name / "config.json", config | {"pretrained_cfg": pretrained, "model_args": arguments})
    image_golden(name, model.forward_features, HALF)


@torch.no_grad()
def main() -> None:
    rmtree(FOLDER, ignore_errors=True)
    hf.utils.logging.disable_progress_bar()
    timm.layers.set_fused_attn(False)
    for seed, (name, (kind, config, pixel_range, run)) in enumerate(IMAGE_MODELS.items()):
        model = build(seed, kind, config)
        save(name, model)
        mean, std = pixel_range
        write_json(FOLDER / name / "preprocessor_config.json", {"image_mean": mean, "image_std": std})
        image_golden(name, lambda images, run=run, model=model: run(model, images), pixel_range)
    write_google(seed=0)  # that of vit
    for seed, (name, (kind, config)) in enumerate(TEXT_MODELS.items(), 20):
        model = build(seed, kind, config)
        save(name, model)
        text_golden(name, model)
    for seed, (name, (architecture, arguments)) in enumerate(TIMM_MODELS.items(), 40):
        torch.manual_seed(seed)
        write_timm(name, architecture, arguments)
    for seed, (name, (kind, config)) in enumerate(REFUSED.items(), 60):
        save(name, build(seed, kind, config))


if __name__ == "__main__":
    main()
