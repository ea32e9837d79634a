"""Values that several configs share: sizes of the model, blocks of data. Plain values, nothing imported from jax."""

from ml_collections import ConfigDict


def parse_arg(arg: str, *, mixed: str = "", **allowed: tuple[str, ...]) -> dict[str, str]:
    """Reads "key=value,key=value", the text after the colon of --config; the first allowed value is the default.

    Args:
        mixed: the key whose value may be several, joined by a plus: data=coco+vg.

    Raises:
        ValueError: an unknown key or value, naming those there are.
    """
    chosen = {key: values[0] for key, values in allowed.items()}
    for item in filter(None, arg.split(",")):
        key, _, value = item.partition("=")
        if key not in allowed:
            raise ValueError(f"--config has no structure {key!r}; choose among {', '.join(allowed)}")
        ones = value.split("+") if key == mixed else [value]
        if len(set(ones)) < len(ones):
            raise ValueError(f"--config has {key}={value}, which names a set twice; name each once")
        for one in ones:
            if one not in allowed[key]:
                raise ValueError(f"--config has no {key}={one}; choose among {', '.join(allowed[key])}")
        chosen[key] = value
    return chosen


# size: pixels, patch, cell (patches a side of a masking unit), width, heads, image / text / cross / decoder depth,
# tokens, vocabulary, width of the contrastive space.
_SIZES = {
    # Learns the generated scenes in ten minutes on two CPU cores: a patch holds one place of the scene's grid.
    "tiny": (48, 16, 1, 128, 4, 4, 2, 2, 1, 20, 256, 128),
    # Learns a few thousand photographs in an hour on two CPU cores. With so little time the number of pictures seen
    # counts for more than width or smaller patches, and larger pictures give nothing: docs/reproducing.md compares.
    "mini": (96, 16, 1, 128, 4, 4, 3, 2, 1, 26, 4_096, 128),
    "small": (112, 16, 1, 384, 6, 8, 6, 3, 3, 32, 8_192, 256),
    # The paper's: ViT-B/16, RoBERTa-base, 3 + 3 cross blocks and a decoder of 3. Heads of the cross blocks, the width
    # of the contrastive space and the text length are not in the paper; 12, 256 and 30 are ALBEF's.
    "base": (224, 16, 2, 768, 12, 12, 12, 3, 3, 30, 50_265, 256),
    "large": (224, 16, 2, 1024, 16, 24, 24, 3, 3, 30, 50_265, 256),
}
SIZES = tuple(_SIZES)


def set_size(config: ConfigDict, size: str) -> None:
    """Fills `config.model` and `config.masking` with the values of a named size."""
    pixels, patch, cell, width, heads, image, text, cross, decoder, length, vocab, embed = _SIZES[size]
    paper = size in ("base", "large")
    # Post-norm blocks as in the paper start from pre-trained encoders there; from scratch pre-norm ones learn sooner.
    norm = "post" if paper else "pre"
    transformer = {"width": width, "heads": heads, "mlp_ratio": 4, "dropout": 0.0}
    config.model = ConfigDict()
    config.model.image = ConfigDict({"image_size": pixels, "patch": patch, "depth": image, **transformer})
    config.model.image.class_token = True
    # How hidden patches are kept from the encoder: token (their embedding is replaced) | drop (only visible ones are
    # encoded) | later (they are dropped in the fusion) | none (no picture is masked).
    config.model.image.hidden = "token"
    config.model.text = ConfigDict(
        {"vocab_size": vocab, "max_length": length, "depth": text, "norm": norm, **transformer}
    )
    # The paper does not say; RoBERTa's own.
    config.model.text.dropout = 0.1 if paper else 0.0
    config.model.fusion = ConfigDict({"depth": cross, "norm": norm, **transformer})
    config.model.decoder_depth = decoder  # of the masked image decoder
    config.model.embed = embed
    config.model.temperature = 0.07  # initial; learned. The paper does not say; ALBEF's.
    config.model.temperature_scale = "log"  # what is learned: log (CLIP) | linear (ALBEF)
    config.model.shared = ConfigDict(
        {
            "init_std": 0.02 if paper else 0.0,  # 0 = Xavier uniform: trains a narrow model from scratch in fewer steps
            "remat": "none",  # none | dots | full
            "unroll": size in ("tiny", "mini"),  # faster on a CPU for few narrow blocks
            "dtype": "auto",  # bfloat16 on TPU and GPU, float32 on a CPU
        }
    )
    config.masking = ConfigDict(
        {
            "policy": "independent",  # independent | modality_aware (heavy image, heavy text or light, MLIM)
            "light_ratio": 0.15,  # of both modalities, where modality_aware masks lightly
            "image_ratio": 0.6,
            "image_cell": cell,  # 32 pixels in the paper
            "text_ratio": 0.3,
            "text_corruption": "mask",  # mask | bert (80 / 10 / 10)
            "whole_word": False,
        }
    )


DATA = ("scenes", "files", "flickr8k", "flickr30k", "coco", "vg", "sbu", "cc3m")
DATA += ("array_record", "tfds", "webdataset", "parquet")
# What a set of a mixture has of its own; the rest of `config.data` holds for all of them.
SET_KEYS = ("source", "root", "split", "images", "captions", "splits", "image_key", "caption_key", "max_missing")
SET_KEYS += ("scenes_seed", "limit")


def data_block(names: str) -> ConfigDict:
    """`config.data` of a named set, or of a mixture of sets: "coco+vg+sbu+cc3m"."""
    first, *others = names.split("+")
    data = _set_block(first)
    if others:
        sets = {name: _set_block(name) for name in (first, *others)}
        # How often each is drawn; all 0: by their sizes.
        parts = {name: {key: block[key] for key in SET_KEYS} | {"weight": 0.0} for name, block in sets.items()}
        data.mixture, data.scored = ConfigDict(parts), first
        for key in SET_KEYS:
            if key != "split":
                del data[key]
    return data


def _set_block(name: str) -> ConfigDict:
    data = ConfigDict(
        {
            "source": "files",
            "root": "",
            "split": "train",
            "images": "",
            "captions": "",
            # split -> list of picture names, {} where the caption file holds the splits; of webdataset and parquet the
            # pattern of a split's shards.
            "splits": {},
            "image_key": "",  # of tfds and parquet: the feature or column that holds the picture; "" = found by type
            "caption_key": "",  # of tfds, parquet and webdataset: the same of the caption
            "mixture": {},
            "scored": "",  # the set of a mixture that evaluation reads
            "clean": "none",  # none | albef: how captions are cleaned
            "max_missing": 0.05,  # share of a split's pictures that may be missing on disk
            "max_broken": 0.05,  # share of the examples read that may be broken
            "scenes_seed": 0,
            "limit": 0,  # train on the first pictures only; 0 = all
            "tokenizer": "",  # a local Hugging Face folder; "" = WordPiece trained on the training captions
            "tokenizer_captions": 200_000,  # captions it is trained on at most
            "modality_dropout": 0.0,  # share of the examples that lose their picture or, as often, their words
            "text_buckets": (),  # text lengths a batch may be cut to; each compiles a step of its own
            # Processes that prepare batches; 0 = threads of the main process, -1 = by the cores beside an accelerator.
            "workers": -1,
            "threads": 1,
            "augment": {
                "crop_scale": (0.2, 1.0),
                "flip": True,
                "randaugment_ops": 2,
                "randaugment_magnitude": 7,
            },
        }
    )
    if name == "scenes":
        data.source = "scenes"
        data.tokenizer_captions = 5_000
        # Captions say where things are, how large and of what colour.
        data.augment = ConfigDict(
            {"crop_scale": (1.0, 1.0), "flip": False, "randaugment_ops": 0, "randaugment_magnitude": 0}
        )
    elif name == "files":
        data.root = "data"
        data.images, data.captions = "images", "captions.csv"
        data.splits = ConfigDict({"train": "train.txt", "val": "val.txt"})
    elif name == "flickr8k":
        data.root = "data/flickr8k"
        data.images, data.captions = "Images", "captions.txt"
        data.splits = ConfigDict(
            {
                "train": "Flickr_8k.trainImages.txt",
                "val": "Flickr_8k.devImages.txt",
                "test": "Flickr_8k.testImages.txt",
            }
        )
    elif name == "coco":
        data.root = "data/coco"
        data.captions = "dataset_coco.json"  # Karpathy's split; names each picture's folder
    elif name == "flickr30k":
        data.root = "data/flickr30k"
        data.images, data.captions = "flickr30k-images", "dataset_flickr30k.json"  # Karpathy's split
    elif name == "vg":
        data.root = "data/vg"
        data.captions = "region_descriptions.json"  # image_data.json beside it names each picture's folder
    elif name in ("sbu", "cc3m"):
        data.root = f"data/{name}"
        data.source, data.splits = "webdataset", ConfigDict({"train": "*.tar"})
    elif name in ("webdataset", "parquet"):
        ending = {"webdataset": "tar", "parquet": "parquet"}[name]
        data.root, data.source = "data", name
        data.splits = ConfigDict({split: f"{split}*.{ending}" for split in ("train", "val", "test")})
    elif name in ("array_record", "tfds"):
        data.root, data.source = "data", name
    return data


def evaluation_block(names: str) -> ConfigDict:
    """`config.evaluation` of a named set; of a mixture, of its first."""
    name = names.split("+")[0]
    return ConfigDict(
        {
            "split": "test" if name in ("scenes", "coco", "flickr30k") else "val",  # of the final scores
            "during": "val",  # scored during training: picks the best checkpoint
            "also": ("novel",) if name == "scenes" else (),  # more splits that the final evaluation scores
            "limit": 0,  # first pictures only; 0 = all
            "captions_per_image": 1 if name == "scenes" else 0,  # 0 = all
            "batch_size": 128,
            "weights": "params",  # params | ema
            "rerank_k": {"coco": 256, "flickr30k": 128, "flickr8k": 64}.get(name, 16),
            # itm (log-odds of matching, ALBEF) | itm+itc (plus cosine over temperature) | itm+cosine (BLIP) | auto: the
            # one with the best mean recall on the first `choose_images` pictures of `during`, where that is not scored.
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
