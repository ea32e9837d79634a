"""`config.data` of named sets, and of mixtures of them. Plain values, nothing imported from jax."""

from ml_collections import ConfigDict

DATA = ("scenes", "files", "flickr8k", "flickr30k", "coco", "vg", "sbu", "cc3m")
DATA += ("array_record", "tfds", "webdataset", "parquet")
DATA += ("roco", "rocov2", "medicat", "reports")  # medical pictures
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
        data.mixture, data.evaluation_set = ConfigDict(parts), first
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
            # Of tfds and parquet the feature or column that holds the picture, of a table the one that names it; "" =
            # found by type or by a usual name.
            "image_key": "",
            "caption_key": "",  # of tfds, parquet, webdataset and tables: the same of the caption
            # label -> more that is made of every example, such as {"name": "label"}; see maskvlm_jax/data/fields.
            "fields": {},
            "mixture": {},
            "evaluation_set": "",  # the set of a mixture that evaluation reads
            # The folder that keeps what a frozen image encoder makes of the pictures, which must not be augmented then.
            "cache_features": "",
            "clean": "none",  # none | albef: how captions are cleaned
            "max_missing": 0.05,  # share of a split's pictures that may be missing on disk
            "max_broken": 0.05,  # share of the examples read that may be broken
            "scenes_seed": 0,
            "limit": 0,  # train on the first pictures only; 0 = all
            "tokenizer": "",  # a Hugging Face folder; "" = that of init.text, or WordPiece trained on the captions
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
    data.update(_SETS[name])
    return data


# What named sets have that others have not.
_SPLITS = ("train", "val", "test")
# Nothing is cropped or flipped: texts say left and right, and how large.
_WHOLE = {"crop_scale": (1.0, 1.0), "flip": False, "randaugment_ops": 0, "randaugment_magnitude": 0}
_SETS = {
    "scenes": {
        "source": "scenes",
        "tokenizer_captions": 5_000,
        # Captions say where things are, how large and of what colour.
        "augment": _WHOLE,
    },
    "files": {
        "root": "data",
        "images": "images",
        "captions": "captions.csv",
        "splits": {"train": "train.txt", "val": "val.txt"},
    },
    "flickr8k": {
        "root": "data/flickr8k",
        "images": "Images",
        "captions": "captions.txt",
        "splits": {
            "train": "Flickr_8k.trainImages.txt",
            "val": "Flickr_8k.devImages.txt",
            "test": "Flickr_8k.testImages.txt",
        },
    },
    # Karpathy's split; names each picture's folder
    "coco": {"root": "data/coco", "captions": "dataset_coco.json"},
    "flickr30k": {"root": "data/flickr30k", "images": "flickr30k-images", "captions": "dataset_flickr30k.json"},
    # image_data.json beside it names each picture's folder
    "vg": {"root": "data/vg", "captions": "region_descriptions.json"},
    "sbu": {"root": "data/sbu", "source": "webdataset", "splits": {"train": "*.tar"}},
    "cc3m": {"root": "data/cc3m", "source": "webdataset", "splits": {"train": "*.tar"}},
    "webdataset": {"root": "data", "source": "webdataset", "splits": {split: f"{split}*.tar" for split in _SPLITS}},
    "parquet": {"root": "data", "source": "parquet", "splits": {split: f"{split}*.parquet" for split in _SPLITS}},
    # `{split}` is what `splits` says.
    "roco": {
        "root": "data/roco",
        "images": "{split}/radiology/images",
        "captions": "{split}/radiology/captions.txt",
        "splits": {"train": "train", "val": "validation", "test": "test"},
        "augment": _WHOLE,
    },
    "rocov2": {
        "root": "data/rocov2",
        "images": "{split}",
        "captions": "{split}_captions.csv",
        "splits": {"train": "train", "val": "valid", "test": "test"},
        "augment": _WHOLE,
    },
    # It has no splits of its own: all of it, unless `splits` names lists.
    "medicat": {
        "root": "data/medicat/release",
        "images": "figures",
        "captions": "s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl",
        "augment": _WHOLE,
    },
    # A table of chest X-rays and their reports.
    "reports": {
        "root": "data/reports",
        "images": "images",
        "captions": "reports.csv",
        "splits": {"train": "train.txt", "val": "val.txt"},
        "caption_key": "findings+impression",
        "augment": _WHOLE,
    },
    "array_record": {"root": "data", "source": "array_record"},
    "tfds": {"root": "data", "source": "tfds"},
}
