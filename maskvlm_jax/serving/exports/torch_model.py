"""A model of maskvlm_jax in PyTorch: this file, torch and safetensors are all that it needs, so it is a long one.

    model = MaskVLM.load("FOLDER")                    # of an export
    images = model.encode_images(pixels)              # (B, E), unit length
    texts = model.encode_texts(tokens, valid)         # (B, E)
    images @ texts.T / model.temperature              # what the contrastive loss reads
    model.match(pixels, tokens, valid)                # (B,) log-odds that picture i and caption i belong together
    model.predict_words(pixels, tokens, valid)        # (B, L, V) logits; hide words by the tokenizer's mask token

`pixels` are (B, 3, Y, X) floats: RGB in 0 to 1, less ImageNet's mean, over its deviation, as preprocessor_config.json
says; `tokens` (B, L) the tokenizer's input_ids, `valid` (B, L) its attention_mask, 1 at all but the padding.

Axes: B batch, N patches, S and T positions, D width, H heads, E contrastive space, L words, V vocabulary.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}
WORD_HEADS = ("masked_text", "distilled_masked_text")


class Attention(nn.Module):
    """Multi-head attention of x over a context, whose invalid positions get no weight."""

    def __init__(self, spec: Mapping):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(spec["width"], spec["width"]) for _ in range(4))
        self.heads = spec["heads"]

    def forward(self, x: Tensor, context: Tensor, valid: Tensor | None = None) -> Tensor:
        q, k, v = (
            dense(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for dense, y in ((self.query, x), (self.key, context), (self.value, context))
        )
        mask = None if valid is None else valid[:, None, None, :]
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, spec: Mapping):
        super().__init__()
        wide = spec["mlp_ratio"] * spec["width"]
        self.up, self.down = nn.Linear(spec["width"], wide), nn.Linear(wide, spec["width"])
        self.activation = ACTIVATIONS[spec["activation"]]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """Self-attention, in a cross block attention over the other modality, and a feed-forward layer.

    Each adds to its input; norms stand before them (ViT) or behind the sums (BERT).
    """

    def __init__(self, spec: Mapping, cross: bool):
        super().__init__()
        if cross:
            self.self_attention, self.cross_attention = Attention(spec), Attention(spec)
            self.norm3 = _norm(spec)
        else:
            self.attention = Attention(spec)
        self.feed_forward, self.norm1, self.norm2 = FeedForward(spec), _norm(spec), _norm(spec)
        self.pre, self.cross = spec["norm"] == "pre", cross

    def forward(self, x: Tensor, valid: Tensor | None, memory: Tensor | None, memory_valid: Tensor | None) -> Tensor:
        own = self.self_attention if self.cross else self.attention
        x = self._added(self.norm1, lambda y: own(y, y, valid), x)
        if self.cross:
            x = self._added(self.norm2, lambda y: self.cross_attention(y, memory, memory_valid), x)
        return self._added(self.norm3 if self.cross else self.norm2, self.feed_forward, x)

    def _added(self, norm: nn.Module, part, x: Tensor) -> Tensor:
        return x + part(norm(x)) if self.pre else norm(x + part(x))


class Stack(nn.Module):
    """Blocks, and the norm behind those that have theirs before."""

    def __init__(self, spec: Mapping, depth: int, *, cross: bool = False, norm: bool):
        super().__init__()
        self.blocks = nn.ModuleList([Block(spec, cross) for _ in range(depth)])
        self.norm = _norm(spec) if norm else None

    def run(self, x: Tensor, valid: Tensor | None = None, memory: Tensor | None = None, memory_valid=None) -> Tensor:
        for block in self.blocks:
            x = block(x, valid, memory, memory_valid)
        return x if self.norm is None else self.norm(x)


class ConvEmbedding(nn.Module):
    """A shallow CNN whose kernels are as large as their strides, 2 x 2."""

    def __init__(self, weights: Mapping[str, Tensor], prefix: str):
        super().__init__()
        count = sum(name.startswith(f"{prefix}layers.") and name.endswith(".weight") for name in weights)
        shapes = [weights[f"{prefix}layers.{i}.weight"].shape for i in range(count)]
        self.layers = nn.ModuleList([nn.Linear(inputs, outputs) for outputs, inputs in shapes])
        outputs, inputs = weights[f"{prefix}out.weight"].shape
        self.out = nn.Linear(inputs, outputs)

    def forward(self, image: Tensor) -> Tensor:
        for layer in self.layers:
            image = F.gelu(layer(_patches(image, 2))).permute(0, 3, 1, 2)
        return self.out(image.permute(0, 2, 3, 1)).flatten(1, 2)


class ImageEncoder(Stack):
    """ViT. The sequence is [class token, distillation token, registers | patches]."""

    def __init__(self, spec: Mapping, weights: Mapping[str, Tensor]):
        super().__init__(spec, spec["depth"], norm="image_encoder.norm.weight" in weights)
        self.patch, width = spec["patch"], spec["width"]
        self.conv = "image_encoder.patch_embedding.weight" not in weights
        if self.conv:
            self.patch_embedding = ConvEmbedding(weights, "image_encoder.patch_embedding.")
        else:
            self.patch_embedding = nn.Linear(3 * self.patch**2, width)
        self.placed = [name for name in ("class_token", "distillation_token") if f"image_encoder.{name}" in weights]
        self.registers = ["register_tokens"] if "image_encoder.register_tokens" in weights else []
        for name in (*self.placed, *self.registers, "position"):
            setattr(self, name, nn.Parameter(torch.empty_like(weights[f"image_encoder.{name}"])))
        self.norm_before = _norm(spec) if "image_encoder.norm_before.weight" in weights else None
        self.prefix = len(self.placed) + (self.register_tokens.shape[1] if self.registers else 0)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embedding(image if self.conv else _patches(image, self.patch).flatten(1, 2))
        x = x + self.position[:, len(self.placed) :]
        first = [getattr(self, name) + self.position[:, i : i + 1] for i, name in enumerate(self.placed)]
        first += [getattr(self, name) for name in self.registers]
        x = torch.cat([*(token.expand(len(x), -1, -1) for token in first), x], 1)
        return self.run(x if self.norm_before is None else self.norm_before(x))


class TextEncoder(Stack):
    """BERT without token types."""

    def __init__(self, spec: Mapping, weights: Mapping[str, Tensor]):
        super().__init__(spec, spec["depth"], norm="text_encoder.norm.weight" in weights)
        self.embedding = nn.Embedding(spec["vocab_size"], spec["width"])
        self.position = nn.Parameter(torch.empty(1, spec["max_length"], spec["width"]))
        self.embedding_norm = _norm(spec)

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position[:, : tokens.shape[1]]
        return self.run(self.embedding_norm(x), valid)


class AttentionPool(nn.Module):
    """A sequence by what the learned query of each head attends to."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.query, self.value = nn.Parameter(torch.empty(heads, width)), nn.Linear(width, width)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        heads = len(self.query)
        logits = (x @ self.query.T).masked_fill(~valid[:, :, None], float("-inf"))
        mean = torch.einsum("bsh,bsd->bhd", logits.softmax(1), x)
        values = self.value.weight.view(heads, -1, x.shape[-1])
        return torch.einsum("bhd,hkd->bhk", mean, values).flatten(1) + self.value.bias


class Projection(nn.Module):
    """Two dense layers with a GELU between them."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.hidden, self.last = nn.Linear(inputs, inputs), nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.gelu(self.hidden(x)))


class CrossFusion(nn.Module):
    """Two streams, or the text's alone, that read the other encoder's output."""

    def __init__(self, spec: Mapping):
        super().__init__()
        streams = ("image_stream", "text_stream") if spec["streams"] == "both" else ("text_stream",)
        for name in streams:
            setattr(self, name, Stack(spec, spec["depth"], cross=True, norm=spec["norm"] == "pre"))
        self.both = spec["streams"] == "both"

    def words(self, image: Tensor, text: Tensor, valid: Tensor) -> Tensor:
        return self.text_stream.run(text, valid, image)

    def pair(self, image: Tensor, text: Tensor, valid: Tensor) -> Tensor:
        pair = self.words(image, text, valid)[:, 0]
        return pair * self.image_stream.run(image, None, text, valid)[:, 0] if self.both else pair


class JointFusion(nn.Module):
    """One stream over words and patches."""

    def __init__(self, spec: Mapping, prefix: int):
        super().__init__()
        self.encoder, self.prefix = Stack(spec, spec["depth"], norm=spec["norm"] == "pre"), prefix

    def words(self, image: Tensor, text: Tensor, valid: Tensor) -> Tensor:
        patches = image[:, self.prefix :]
        shown = torch.cat([valid, valid.new_ones(patches.shape[:2])], 1)
        return self.encoder.run(torch.cat([text, patches], 1), shown)[:, : text.shape[1]]

    def pair(self, image: Tensor, text: Tensor, valid: Tensor) -> Tensor:
        return self.words(image, text, valid)[:, 0]


class MaskVLM(nn.Module):
    """Both encoders, their fusion, the contrastive space, and the heads that match pairs and name words.

    Args:
        config: config.json of an export.
        weights: its model.safetensors. Heads that only training needs are not built.
    """

    def __init__(self, config: Mapping, weights: Mapping[str, Tensor]):
        super().__init__()
        model, objectives = config["model"], config["objectives"]
        image, text, fusion, embed = model["image"], model["text"], model["fusion"], model["embed"]
        self.image_encoder, self.text_encoder = ImageEncoder(image, weights), TextEncoder(text, weights)
        if fusion["kind"] == "cross":
            self.fusion = CrossFusion(fusion)
        elif fusion["kind"] == "joint":
            self.fusion = JointFusion(fusion, self.image_encoder.prefix)
        elif fusion["kind"] != "none":
            raise ValueError(f"a fusion of kind {fusion['kind']} is not in this file")
        self.pooling, self.embed = model["pooling"], embed
        if embed:
            head = Projection if self.pooling["layers"] == 2 else nn.Linear
            for modality, spec in (("image", image), ("text", text)):
                kind = self.pooling[modality]
                if "attention" in kind:
                    setattr(self, f"{modality}_attention", AttentionPool(spec["width"], spec["heads"]))
                width = spec["width"] * (2 if kind in ("both", "first+attention") else 1)
                setattr(self, f"{modality}_projection", head(width, embed))
                if self.pooling["centred"]:
                    setattr(self, f"{modality}_centre", nn.Parameter(torch.empty(2, spec["width"])))
        temperature = weights.get("temperature", torch.ones(()))
        self.temperature = float(temperature.exp() if model["temperature_scale"] == "log" else temperature)
        heads, self._match, self._words = {}, None, None
        for label, one in objectives.items():
            if not one["weight"]:
                continue
            if one["name"] == "matching":
                heads[label], self._match = nn.ModuleDict({"to_match": nn.Linear(text["width"], 2)}), label
            elif one["name"] in WORD_HEADS:
                heads[label], self._words = nn.Module(), label
                if one.get("tie", False):
                    heads[label].bias = nn.Parameter(torch.empty(text["vocab_size"]))
                else:
                    heads[label].to_words = nn.Linear(text["width"], text["vocab_size"])
        self.objectives = nn.ModuleDict(heads)
        wanted = self.state_dict().keys()
        self.load_state_dict({name: weights[name] for name in wanted})

    @classmethod
    def load(cls, folder: str | Path) -> "MaskVLM":
        """The model of an export, ready to be used."""
        folder = Path(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return cls(config, load_file(folder / "model.safetensors")).eval()

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(B, E) of unit length."""
        x = self._centred("image", self.image_encoder(pixels))
        valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return self._embedded("image", x, valid, x[:, self.image_encoder.prefix :].mean(1))

    def encode_texts(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """(B, E) of unit length; the mean is over words, start and end token."""
        x, shown = self._centred("text", self.text_encoder(tokens, valid.bool())), valid[:, :, None].to(torch.float32)
        return self._embedded("text", x, valid.bool(), (x * shown).sum(1) / shown.sum(1))

    def _centred(self, modality: str, x: Tensor) -> Tensor:
        if not (self.embed and self.pooling["centred"]):
            return x
        centre = getattr(self, f"{modality}_centre")  # of the first position, of all others
        return torch.cat([x[:, :1] - centre[0], x[:, 1:] - centre[1]], 1)

    def _embedded(self, modality: str, x: Tensor, valid: Tensor, mean: Tensor) -> Tensor:
        if not self.embed:
            raise ValueError("this model has no contrastive space")
        kind = self.pooling[modality]
        other = getattr(self, f"{modality}_attention")(x, valid) if "attention" in kind else mean
        pooled = x[:, 0] if kind == "first" else other
        pooled = torch.cat([x[:, 0], pooled], 1) if kind in ("both", "first+attention") else pooled
        return F.normalize(getattr(self, f"{modality}_projection")(pooled), dim=1)

    def match(self, pixels: Tensor, tokens: Tensor, valid: Tensor) -> Tensor:
        """(B,) log-odds that picture i and caption i belong together; their sigmoid is a probability among 1 : 2."""
        if self._match is None:
            raise ValueError("this model was not trained to match pairs")
        valid = valid.bool()
        pair = self.fusion.pair(self.image_encoder(pixels), self.text_encoder(tokens, valid), valid)
        logits = self.objectives[self._match]["to_match"](pair)
        return logits[:, 1] - logits[:, 0]

    def predict_words(self, pixels: Tensor, tokens: Tensor, valid: Tensor) -> Tensor:
        """(B, L, V) logits of the word at every position, given the others and the picture."""
        if self._words is None:
            raise ValueError("this model was not trained to name words")
        valid, head = valid.bool(), self.objectives[self._words]
        fused = self.fusion.words(self.image_encoder(pixels), self.text_encoder(tokens, valid), valid)
        if hasattr(head, "to_words"):
            return head.to_words(fused)
        return F.linear(fused, self.text_encoder.embedding.weight, head.bias)


def _norm(spec: Mapping) -> nn.LayerNorm:
    return nn.LayerNorm(spec["width"], eps=spec["eps"])


def _patches(image: Tensor, size: int) -> Tensor:
    """(B, rows, columns, size * size * 3) from (B, 3, Y, X): pixels of a patch in the order row, column, channel."""
    b, c, y, x = image.shape
    cut = image.reshape(b, c, y // size, size, x // size, size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(b, y // size, x // size, size * size * c)
