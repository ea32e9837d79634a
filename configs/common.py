"""Values that several configs share: sizes of the model, what is scored. Plain values, nothing imported from jax."""

from typing import NamedTuple

from ml_collections import ConfigDict


def parse_arg(arg: str, *, mixed: str = "", file: str = "", **allowed: tuple[str, ...]) -> dict[str, str]:
    """Reads "key=value,key=value", the text after the colon of --config; the first allowed value is the default.

    Args:
        mixed: the key whose value may be several, joined by a plus: data=coco+vg.
        file: the key whose value may be the path of a .py file: recipe=mine.py.

    Raises:
        ValueError: an unknown key or value, naming those there are.
    """
    chosen = {key: values[0] for key, values in allowed.items()}
    for item in filter(None, arg.split(",")):
        key, _, value = item.partition("=")
        if key not in allowed:
            raise ValueError(f"--config has no structure {key!r}; choose among {', '.join(allowed)}")
        if key == file and value.endswith(".py"):
            chosen[key] = value
            continue
        ones = value.split("+") if key == mixed else [value]
        if len(set(ones)) < len(ones):
            raise ValueError(f"--config has {key}={value}, which names a set twice; name each once")
        for one in ones:
            if one not in allowed[key]:
                raise ValueError(f"--config has no {key}={one}; choose among {', '.join(allowed[key])}")
        chosen[key] = value
    return chosen


class Size(NamedTuple):
    """A named size of the model, and of the pictures and captions that it reads.

    pixels: of a picture's side; patch: of a patch's; cell: patches a side of a masking unit.
    width, heads: of every block; image, text, cross, decoder: blocks of each stack.
    tokens: of a caption, with those of start and end; vocabulary: its tokens; embed: width of the contrastive space.
    """

    pixels: int
    patch: int
    cell: int
    width: int
    heads: int
    image: int
    text: int
    cross: int
    decoder: int
    tokens: int
    vocabulary: int
    embed: int


# The paper's: ViT-B/16, RoBERTa-base, 3 + 3 cross blocks and a decoder of 3. Heads of the cross blocks, the width of
# the contrastive space and the text length are not in the paper; 12, 256 and 30 are ALBEF's.
_BASE = Size(
    pixels=224,
    patch=16,
    cell=2,
    width=768,
    heads=12,
    image=12,
    text=12,
    cross=3,
    decoder=3,
    tokens=30,
    vocabulary=50_265,
    embed=256,
)
# Learns the generated scenes in ten minutes on two CPU cores: a patch holds one place of the scene's grid.
_TINY = Size(
    pixels=48,
    patch=16,
    cell=1,
    width=128,
    heads=4,
    image=4,
    text=2,
    cross=2,
    decoder=1,
    tokens=20,
    vocabulary=256,
    embed=128,
)
_SIZES = {
    "tiny": _TINY,
    # Learns a few thousand photographs in an hour on two CPU cores. With so little time the number of pictures seen
    # counts for more than width or smaller patches, and larger pictures give nothing: docs/reproducing.md compares.
    "mini": _TINY._replace(pixels=96, text=3, tokens=26, vocabulary=4_096),
    # Of encoders that are read in, which say the rest themselves: width and heads of 0 are
    # theirs (`models.pretrained`).
    # The picture's side is a multiple of a patch of 14 and of 16.
    "encoders": _BASE._replace(
        pixels=112, cell=1, width=0, heads=0, text=6, cross=2, decoder=1, tokens=32, vocabulary=8_192
    ),
    "small": _BASE._replace(pixels=112, cell=1, width=384, heads=6, image=8, text=6, tokens=32, vocabulary=8_192),
    "base": _BASE,
    "large": _BASE._replace(width=1024, heads=16, image=24, text=24),
}
SIZES = tuple(_SIZES)
WHOLE_SIZES = tuple(name for name in _SIZES if name != "encoders")  # which say all of the model themselves
PAPER_SIZES = ("base", "large")  # those of papers; the others are for short runs


def decoder_depth(size: str) -> int:
    """Blocks of the decoder that a named size gives masked pictures."""
    return _SIZES[size].decoder


def set_size(config: ConfigDict, name: str) -> None:
    """Fills `config.model` and `config.masking` with the values of a named size."""
    size = _SIZES[name]
    paper = name in PAPER_SIZES
    # Post-norm blocks as in the paper start from pre-trained encoders there; from scratch pre-norm ones learn sooner.
    norm = "post" if paper else "pre"
    # What blocks are: `kind` names a file of maskvlm_jax/models/blocks, or is the path of another; norm: pre | post;
    # activation: gelu (erf) | gelu_tanh | quick_gelu.
    transformer = {"width": size.width, "heads": size.heads, "mlp_ratio": 4, "dropout": 0.0}
    transformer |= {"activation": "gelu", "eps": 1e-5}
    block = {**transformer, "kind": "dense"}
    config.model = ConfigDict()
    config.model.image = ConfigDict({"image_size": size.pixels, "patch": size.patch, "depth": size.image, **block})
    config.model.image.norm, config.model.image.eps = "pre", 1e-6  # a ViT's
    config.model.image.class_token = True
    config.model.image.distillation_token = False  # one more behind it (DeiT)
    config.model.image.registers = 0  # learned tokens without a position (DINOv2)
    config.model.image.norm_before = False  # a layer norm before the blocks (CLIP)
    # How hidden patches are kept from the encoder: token (their embedding is replaced) | pixel (their pixels are, by a
    # learned colour) | drop (only visible ones are encoded) | left_out (nor do hidden ones have a place behind the
    # encoder, fusion co) | drop_in_fusion (all are embedded, the fusion encodes the visible ones) | none (no picture is
    # masked).
    config.model.image.hidden = "token"
    config.model.text = ConfigDict(
        {"vocab_size": size.vocabulary, "max_length": size.tokens, "depth": size.text, "norm": norm, **block}
    )
    config.model.text.mask_id = -1  # of the mask token, where the device must know it; -1 = the tokenizer's
    # The paper does not say; RoBERTa's own.
    config.model.text.dropout = 0.1 if paper else 0.0
    # Here `kind` is that of the fusion, which a recipe sets.
    config.model.fusion = ConfigDict({"depth": size.cross, "norm": norm, **transformer, "block_kind": "dense"})
    config.model.embed = size.embed
    # What becomes a vector of it: first (class or start token) | mean (of patches, of words) | both | attention
    # (of learned queries) | first+attention; by 1 or 2 layers.
    # dropout: of the hidden units between two; centred: centres are subtracted first, which start from means.
    config.model.pooling = ConfigDict(
        {"image": "first", "text": "first", "layers": 1, "dropout": 0.0, "centred": False}
    )
    if name == "encoders":
        # Sentence encoders are made for the mean of their words. Which of DINOv2's patches
        # count is learned.
        config.model.pooling.update({"image": "first+attention", "text": "mean", "layers": 2})
    config.model.temperature = 0.07  # initial; learned. The paper does not say; ALBEF's.
    config.model.temperature_scale = "log"  # what is learned: log (CLIP) | linear (ALBEF)
    config.model.shared = ConfigDict(
        {
            "init_std": 0.02 if paper else 0.0,  # 0 = Xavier uniform: trains a narrow model from scratch in fewer steps
            "remat": "none",  # none | dots | full
            "unroll": name in ("tiny", "mini"),  # faster on a CPU for few narrow blocks
            "dtype": "auto",  # bfloat16 on TPU and GPU, float32 on a CPU
        }
    )
    config.masking = _masking(size.cell)


def _masking(cell: int) -> ConfigDict:
    return ConfigDict(
        {
            "policy": "independent",  # independent | modality_aware (heavy image, heavy text or light, MLIM)
            "light_ratio": 0.15,  # of both modalities, where modality_aware masks lightly
            "image_ratio": 0.6,
            "image_cell": cell,  # 32 pixels in the paper
            "text_ratio": 0.3,
            "text_corruption": "mask",  # mask | bert (80 / 10 / 10)
            "whole_word": False,
            # {} = masks are drawn on the host; {"name": "attended"} by what the moving average of the model attends to.
            # See maskvlm_jax/objectives/maskers.
            "masker": {},
        }
    )


def evals_block() -> ConfigDict:
    """`config.evals`: label -> the evaluator, in maskvlm_jax/evaluators/ or a .py file, and its options.

    `during`: it runs during training too, where its metrics may choose the best checkpoint; if none of these has
    anything to say of the model, the others run. Options that a line does not give are those of `config.evaluation`.
    """
    during = {"retrieval": True, "matching": True, "probes": False, "figures": False}
    return ConfigDict({name: {"name": name, "during": value} for name, value in during.items()})


def evaluation_block(names: str) -> ConfigDict:
    """`config.evaluation` of a named set; of a mixture, of its first."""
    name = names.split("+")[0]
    return ConfigDict(
        {
            "split": "test" if name in ("scenes", "coco", "flickr30k") else "val",  # of the final scores
            "validation_split": "val",  # scored during training: picks the best checkpoint
            "extra_splits": ("novel",) if name == "scenes" else (),  # more splits that the final evaluation scores
            "limit": 0,  # first pictures only; 0 = all
            "captions_per_image": 1 if name == "scenes" else 0,  # 0 = all
            "batch_size": 128,
            "memory_gb": 4.0,  # of a split's pictures that are held at most; the others are read again each time
            "weights": "params",  # params | ema
            # Candidates that are re-ranked; 0: none; -1: the best of 16, 32, ... 256, chosen as the score is.
            "rerank_k": {"coco": 256, "flickr30k": 128, "flickr8k": 64}.get(name, 16),
            # itm (log-odds of matching, ALBEF) | itm+itc (plus cosine over temperature) | itm+cosine (BLIP) | auto: the
            # one with the best mean recall on the first `choose_images` pictures of `validation_split`, if that is not
            # scored itself.
            "rerank_score": "auto",
            "choose_images": 1_000,  # 0 = all
            "match_images": 100,  # pictures that matching alone ranks, where there is no contrastive space
            "probe_limit": 1_000,  # pictures that the probes and the matching head's area under the curve read; 0 = all
            "figures": 8,  # examples in the figures; 0 = none
            "seed": 0,
            # Of the checkpoint that is kept as the best; larger is better. auto: mean recall, by matching where there
            # is no contrastive space, else how well masked words, pixels or features are predicted.
            "best_metric": "auto",
        }
    )
