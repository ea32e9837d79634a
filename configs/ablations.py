"""Ablation grids: rows that differ in one thing, each with several seeds, at the same budget.

    python -m maskvlm_jax.ablate --config=configs/ablations.py:table=losses

Tables: losses (MaskVLM's Table 5), masking (its Table 6), ratios (its Table 7), data (its Table 4), recipes; negatives
and weights, of the matching loss and of all losses; experts, of feed-forward layers (EVE); levels, of the layer that
pixels are read behind (medical M3AE, Figure 2); pictures, of what is told of hidden patches and of how large pictures
are (FastMIM), by linear probes; masks, of what is hidden (after SyncMask); targets, of masked patches, and text, where
it takes part in them (after SemMIM).
"""

from ml_collections import ConfigDict

from configs import common, data_sets
from configs.recipes import parts

LABELS = {"ITC": "contrastive", "ITM": "matching", "MLM": "masked_text", "MIM": "masked_image"}
# Tables whose rows have the default run's budget on scenes.
LONG = ("losses", "experts", "levels", "pictures", "masks", "targets", "text")
RETRIEVAL = ("t2i_r1", "i2t_r1", "mean_recall", "rerank_t2i_r1", "rerank_i2t_r1", "rerank_mean_recall")
RETRIEVAL += ("matching_auc", "match_t2i_r1", "match_i2t_r1", "match_mean_recall")
PROBES = (
    "masked_text_accuracy_matched",
    "masked_text_accuracy_shuffled",
    "masked_image_psnr_matched",
    "masked_image_psnr_shuffled",
)
LINEAR = ("linear_probe_shape_accuracy", "linear_probe_colour_accuracy")


def get_config(arg: str = "") -> ConfigDict:
    """A grid; `arg` is the text after the colon."""
    choice = common.parse_arg(arg, table=TABLES, size=common.WHOLE_SIZES, data=data_sets.DATA, mixed="data")
    config = ConfigDict()
    config.task = "ablate"
    config.name = f"{choice['table']}-{choice['size']}-{choice['data']}"
    config.seeds = (0, 1, 2)
    scenes = choice["data"] == "scenes"
    # Of every row. Photographs are learned later than scenes.
    config.steps = 400 if not scenes else 1_200 if choice["table"] in LONG else 200
    config.batch_size = 64
    # Of retrieval fine-tuning behind every row; 0 = none. Rows without a contrastive loss compare by nothing else.
    config.finetune_steps = 100 if choice["table"] in ("losses", "recipes") else 0
    config.parallel = 1  # runs side by side; small models use a core each better than all cores together
    config.data_root = ""  # of a set on disk
    # How well what is masked is predicted can be compared where every row masks alike.
    config.metrics = RETRIEVAL + (PROBES if choice["table"] in ("masking", *LONG) else ())
    config.plotted = ("mean_recall", "rerank_mean_recall", "match_mean_recall")
    if choice["table"] == "pictures":
        # Scored behind every row: what a linear layer on frozen features tells of scenes with one object.
        config.score = "configs/finetune.py:task=linear_probe"
        config.metrics = (*LINEAR, "masked_patches_explained", "masked_patches_cosine")
        config.plotted = LINEAR
    # Every run's command: a config file with its structure, and flags that every row gets.
    config.pretrain, config.finetune = "configs/pretrain.py", "configs/finetune_retrieval.py"
    config.structure = f"size={choice['size']},data={choice['data']}"
    config.flags = ("evaluation.extra_splits=()", "evaluation.figures=0")
    if not scenes:  # rows compare at a fraction of the full evaluation's cost
        config.flags += ("evaluation.captions_per_image=1", "evaluation.rerank_k=16")
    # (name, recipe, flags of this row)
    config.rows = tuple((name, recipe, tuple(flags)) for name, recipe, flags in _TABLES[choice["table"]])
    return config


def _losses(*names: str) -> list[str]:
    """MaskVLM's objectives: those named, with the weights of the size's own runs, and no others."""
    return [f"objectives.{label}.weight=0.0" for name, label in LABELS.items() if name not in names]


def _masked_at_once(view: str) -> list[str]:
    return [f"objectives.{label}.other={view}" for label in ("masked_image", "masked_text")]


def _weights(contrastive: float, masked_image: float) -> list[str]:
    return [f"objectives.contrastive.weight={contrastive}", f"objectives.masked_image.weight={masked_image}"]


def _experts(layers: int, lower: str = "modality", ratio: int = 4) -> list[str]:
    """EVE with so many routed blocks, and what stands in the place of their experts and below them."""
    flags = [f"layers={layers}", f"lower={lower}", f"mlp_ratio={ratio}"]
    balance = [] if layers else ["objectives.load_balance.weight=0.0"]
    return [f"model.fusion.experts.{flag}" for flag in flags] + balance


def _pictures(pixels: int, target: str = "hog", *more: str) -> list[str]:
    """FastMIM with pictures of so many pixels a side, and what is told of their hidden patches."""
    return [f"model.image.image_size={pixels}", f"objectives.masked_patches.target={target}", *more]


def _target(label: str, weight: float = 1.0) -> list[str]:
    """SemMIM's recipe with another objective of masked patches in the place of its two."""
    weights = {"agreement": 0.0, "masked_prototype": 0.0} | {label: weight}
    return [f"objectives.{label}.weight={weight}" for label, weight in weights.items()]


def _text(*, fusion: bool = False, hardness: float = 1.0) -> list[str]:
    """SemMIM's recipe with targets without text, masks by it of this hardness, and it read in the prediction or not."""
    reads = ("fused" if fusion else "image", "image")
    flags = [f"objectives.masked_prototype.{k}={v}" for k, v in zip(("prediction", "target"), reads, strict=True)]
    return [*flags, f"masking.masker.hardness={hardness}"]


_RECIPES = ("maskvlm", "mamo", "albef", "clip", "mlim", "m3ae", "eve", "syncmask", "semmim", "m3ae_med")
_TABLES = {
    "losses": [
        ("ITC", "maskvlm", _losses("ITC")),
        ("MLM+MIM", "maskvlm", _losses("MLM", "MIM")),
        ("ITC+ITM", "maskvlm", _losses("ITC", "ITM")),
        ("ITC+ITM+MLM", "maskvlm", _losses("ITC", "ITM", "MLM")),
        ("ITC+ITM+MIM", "maskvlm", _losses("ITC", "ITM", "MIM")),
        ("ITC+ITM+MLM+MIM", "maskvlm", []),
    ],
    "masking": [
        ("one modality at a time", "maskvlm", _masked_at_once("clean")),
        ("both at once", "maskvlm", _masked_at_once("masked")),
    ],
    "ratios": [
        (
            f"image {image}, text {text}",
            "maskvlm",
            [f"masking.image_ratio={image}", f"masking.text_ratio={text}"],
        )
        for image, text in ((0.5, 0.3), (0.6, 0.3), (0.7, 0.3), (0.6, 0.15))
    ],
    "negatives": [
        ("by similarity", "maskvlm", ["objectives.matching.ramp=(0.0,0.0)"]),
        ("uniform at first", "maskvlm", ["objectives.matching.ramp=(0.3,0.8)"]),
        ("uniform", "maskvlm", ["objectives.matching.hardness=0.0"]),
    ],
    "weights": [
        ("contrastive 0.3, masked image 3", "maskvlm", _weights(0.3, 3.0)),
        ("all 1", "maskvlm", _weights(1.0, 1.0)),
    ],
    # A position's work is that of one feed-forward layer of ratio 4 in every row but the last.
    "experts": [
        ("shared", "eve", _experts(0, "shared")),
        ("by modality", "eve", _experts(0)),
        ("by modality, routed above", "eve", _experts(2, ratio=2)),
        ("by modality, routed above, whole experts", "eve", _experts(2)),
    ],
    # Of the four layers of a stream at tiny and mini; layers above the one that is read learn nothing of pixels.
    "levels": [(f"pixels behind layer {tap}", "m3ae_med", [f"model.fusion.tap={tap}"]) for tap in (0, 1, 2, 4)],
    # A step on 96 pixels has the products of 4.4 on 48.
    "pictures": [
        ("48 pixels, HOG", "fastmim", _pictures(48)),
        ("48 pixels, pixels", "fastmim", _pictures(48, "pixels")),
        ("96 pixels, HOG", "fastmim", _pictures(96)),
        ("96 pixels, HOG, the work of 48", "fastmim", _pictures(96, "hog", "steps=270", "optim.warmup_steps=27")),
        ("96 pixels, pixels", "fastmim", _pictures(96, "pixels")),
        ("one step", "fastmim", _pictures(48, "hog", "steps=1", "optim.warmup_steps=0")),
    ],
    # Random masks are drawn on the host; the moving average is there in every row.
    "masks": [
        ("attended, drawn", "syncmask", []),
        ("attended, the highest", "syncmask", ["masking.masker.sampler=top"]),
        ("random", "syncmask", ["masking.masker={}"]),
    ],
    # The others keep the masks, the fusion and the other losses of the last row.
    "targets": [
        ("pixels", "semmim", _target("masked_image", parts.SHORT_PIXELS)),
        ("features of the moving average", "semmim", _target("masked_feature")),
        ("prototypes without agreement", "semmim", _target("masked_prototype")),
        ("prototypes", "semmim", []),
    ],
    "text": [
        ("none", "semmim", _text(hardness=0.0)),
        ("masks", "semmim", _text()),
        ("masks and prediction", "semmim", _text(fusion=True)),
        ("masks, prediction and target", "semmim", []),
    ],
    "data": [
        (f"{recipe}, {limit:,} pictures", recipe, [f"data.limit={limit}"])
        for recipe in ("maskvlm", "albef")
        for limit in (500, 1_000, 2_000, 6_000)
    ],
    "recipes": [(recipe, recipe, []) for recipe in _RECIPES],
}
TABLES = tuple(_TABLES)
