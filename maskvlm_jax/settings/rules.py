"""What a config must satisfy, checked before anything is allocated."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from maskvlm_jax.runtime import plugins
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import needs, plain_values, ranges
from maskvlm_jax.settings.choices import check_choice, check_lines


def check(config: ConfigDict) -> None:
    """Cross-field rules.

    Raises:
        UserError: naming the fields, their values and what would fit.
    """
    ranges.check(plain_values.flatten(config.to_dict()))
    _check_choices(config)
    image = config.model.image
    if image.image_size % image.patch:
        raise UserError(f"model.image.patch {image.patch} does not divide model.image.image_size {image.image_size}")
    grid = image.image_size // image.patch
    if grid % config.masking.image_cell:
        raise UserError(
            f"masking.image_cell {config.masking.image_cell} does not divide the {grid} x {grid} grid of patches"
        )
    check_lines(config.data.fields, "data.fields", ("name",))
    _check_blocks(config)
    _check_fusion(config)
    if config.evaluation.weights == "ema" and not config.optim.ema_decay:
        raise UserError("evaluation.weights=ema needs a moving average; set --config.optim.ema_decay=0.999")
    active = active_objectives(config)
    if not active:
        raise UserError("every objective has weight 0: nothing to train")
    needs.check_objectives(config, active)
    needs.check_masker(config)


def objective_class(name: str) -> Any:
    """The class of `maskvlm_jax/objectives/NAME.py`, or of the file that `name` is the path of.

    Raises:
        UserError: there is none.
    """
    return plugins.load("maskvlm_jax.objectives", name, "Objective", "objective")


_DROPPING = ("autoencoder", "experts")  # kinds of fusion that leave out what is hidden
_POOLED = ("first", "mean", "both", "attention", "first+attention")
_BLOCK_CHOICES = {"norm": ("pre", "post"), "activation": ("gelu", "gelu_tanh", "quick_gelu")}


def active_objectives(config: ConfigDict) -> dict[str, Any]:
    """label -> class of every objective that has a weight."""
    check_lines(config.objectives, "objectives", ("name", "weight"))
    return {label: objective_class(one.name) for label, one in config.objectives.items() if one.weight}


def _stacks(config: ConfigDict, *, joined: bool = False) -> dict[str, ConfigDict]:
    """What describes a stack of blocks, or at least its width, by its key; where `joined` only those that are built and
    must be as wide as the model."""
    parts = [name for name in ("image", "text", "fusion") if config.model[name].kind != "none"]
    found = {f"model.{name}": config.model[name] for name in parts}
    active = active_objectives(config) if joined else {}
    found |= {
        f"objectives.{label}.decoder": one.get("decoder", {})
        for label, one in config.objectives.items()
        if not joined or (label in active and not active[label].own_width)
    }
    return {name: block for name, block in found.items() if "width" in block}


def _check_blocks(config: ConfigDict) -> None:
    """Widths, heads, depths and kinds of the parts."""
    model, blocks = config.model, _stacks(config, joined=True)
    if len({block.width for block in blocks.values()}) > 1:
        widths = ", ".join(f"{name}.width {block.width}" for name, block in blocks.items())
        raise UserError(f"widths must be equal, they are {widths}; set the others by --config.NAME.width and .heads")
    single_stream = model.fusion.kind in ("joint", *_DROPPING)
    for name, block in _stacks(config).items():
        if "heads" in block and block.width % block.heads:
            raise UserError(f"{name}.heads {block.heads} does not divide its width {block.width}")
        least = 0 if single_stream and name != "model.fusion" else 1
        if block.depth < least:
            raise UserError(f"{name}.depth is {block.depth}; give at least {least}")
        cross = not single_stream and name not in ("model.image", "model.text")
        parts = {"CrossBlock": "cross block"} if cross else {"Block": "block"}
        if name == "model.fusion" and model.fusion.kind == "experts":
            parts = {"ModalityBlock": "block by modality", "RoutedBlock": "routed block"}
        _check_kind(name, block, parts)


def _check_kind(name: str, block: ConfigDict, parts: Mapping[str, str]) -> None:
    """The file that the blocks of a stack are in is there, and has the classes `parts`, by what they are called."""
    key = "block_kind" if name == "model.fusion" else "kind"
    if key in block:
        for part, what in parts.items():
            try:
                plugins.load("maskvlm_jax.models.blocks", block[key], part, what)
            except UserError as error:
                raise UserError(f"{name}.{key}: {error}") from error


def _check_experts(fusion: ConfigDict) -> None:
    """Routed blocks are no more than all blocks, and chosen experts no more than all experts."""
    experts = fusion.experts
    check_choice(experts, "model.fusion.experts.lower", ("modality", "shared"))
    if experts.layers > fusion.depth:
        raise UserError(f"model.fusion.experts.layers {experts.layers} is more than model.fusion.depth {fusion.depth}")
    if experts.top > experts.count:
        raise UserError(f"model.fusion.experts.top {experts.top} is more than their number, count {experts.count}")


def _check_decoder(fusion: ConfigDict) -> None:
    """The decoder of a fusion has blocks, and heads that share its width."""
    decoder = {"heads": fusion.heads, "width": fusion.width, **fusion.decoder}
    for key, choices in _BLOCK_CHOICES.items():
        if key in fusion.decoder:
            check_choice(fusion.decoder, f"model.fusion.decoder.{key}", choices)
    if decoder["depth"] < 1:
        raise UserError(f"model.fusion.decoder.depth is {decoder['depth']}; give at least 1")
    if decoder["width"] % decoder["heads"]:
        raise UserError(f"model.fusion.decoder.heads {decoder['heads']} does not divide its width {decoder['width']}")


def _check_fusion(config: ConfigDict) -> None:
    """Fields that a fusion shares with encoders and masks."""
    image, fusion, masking = config.model.image, config.model.fusion, config.masking
    streams = fusion.kind in ("cross", "co")
    first = bool(config.model.embed) and config.model.pooling.image not in ("mean", "attention")
    if not image.class_token and (first or streams):
        reader = (
            f"the {fusion.kind} fusion reads" if streams else f"model.pooling.image={config.model.pooling.image} reads"
        )
        raise UserError(f"the image encoder has no class token (model.image.class_token=False), which {reader}")
    if image.distillation_token and not image.class_token:
        raise UserError("model.image.distillation_token follows a class token; set model.image.class_token to True")
    decoded = fusion.kind == "co" and bool(fusion.decoder)
    if fusion.kind in _DROPPING or decoded:
        _check_decoder(fusion)
    if fusion.kind == "co" and fusion.tap > fusion.depth:
        raise UserError(f"model.fusion.tap {fusion.tap} is more than model.fusion.depth {fusion.depth}")
    if fusion.kind == "experts":
        _check_experts(fusion)
    if masking.policy == "modality_aware" and not 0 <= masking.light_ratio <= min(
        masking.image_ratio, masking.text_ratio
    ):
        raise UserError(
            f"masking.light_ratio {masking.light_ratio} must not be above image_ratio {masking.image_ratio} "
            f"and text_ratio {masking.text_ratio}"
        )
    if (image.hidden == "drop_in_fusion") != (fusion.kind in _DROPPING) or (image.hidden == "left_out") != decoded:
        of_kind = f"{fusion.kind} {'with' if decoded else 'without'} a decoder" if fusion.kind == "co" else fusion.kind
        raise UserError(f"model.image.hidden={image.hidden} does not go with model.fusion.kind={of_kind}")
    if config.model.text.kind == "none" and (fusion.kind != "none" or config.model.embed):
        raise UserError("model.text.kind=none leaves pictures alone; set model.fusion.kind to none, model.embed to 0")
    if image.hidden == "pixel" and config.model.get("shared_mask", False):
        raise UserError("model.image.hidden=pixel is a colour and model.shared_mask a word; set one: token, or False")
    exact = masking.policy == "independent" and not masking.whole_word
    hidden_dropped = image.hidden in ("drop", "left_out", "drop_in_fusion")
    if (fusion.kind == "autoencoder" and not exact) or (hidden_dropped and masking.policy != "independent"):
        raise UserError("only masks of an exact count can be dropped: set masking.policy=independent, whole_word=False")
    if image.get("embedding", "patch") == "conv" and image.patch & (image.patch - 1):
        raise UserError(f"model.image.patch {image.patch} is no power of two, as model.image.embedding=conv needs")


def _check_choices(config: ConfigDict) -> None:
    """Values that are one of a few words."""
    image, fusion = config.model.image, config.model.fusion
    check_choice(config.masking, "masking.text_corruption", ("mask", "bert"))
    check_choice(config.masking, "masking.policy", ("independent", "modality_aware"))
    check_choice(image, "model.image.hidden", ("token", "pixel", "drop", "left_out", "drop_in_fusion", "none"))
    check_choice(fusion, "model.fusion.kind", ("cross", "co", "joint", *_DROPPING, "none"))
    for block, key, choices in (
        (fusion, "model.fusion.streams", ("both", "text")),
        (image, "model.image.embedding", ("patch", "conv")),
        *(
            (block, f"{name}.{key}", choices)
            for name, block in _stacks(config).items()
            for key, choices in _BLOCK_CHOICES.items()
        ),
    ):
        if key.rsplit(".", 1)[1] in block:
            check_choice(block, key, choices)
    check_choice(config.data, "data.clean", ("none", "albef"))
    check_choice(config.evaluation, "evaluation.rerank_score", ("auto", "itm", "itm+itc", "itm+cosine"))
    check_choice(config.evaluation, "evaluation.weights", ("params", "ema"))
    for modality in ("image", "text"):
        check_choice(config.model.pooling, f"model.pooling.{modality}", _POOLED)
    if config.model.pooling.dropout and config.model.pooling.layers == 1:
        raise UserError("model.pooling.dropout is of the units between two layers; set model.pooling.layers to 2")
    check_choice(config.model, "model.temperature_scale", ("log", "linear"))
    check_choice(config.model.shared, "model.shared.remat", ("none", "dots", "full"))
    check_choice(config.model.shared, "model.shared.dtype", ("auto", "float32", "bfloat16"))
