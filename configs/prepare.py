"""Prepared shards of a set: checked once, then read fast and at random.

    python -m maskvlm_jax.prepare --config=configs/prepare.py:data=coco --config.data.root=FOLDER --config.out=OUT
    python -m maskvlm_jax.prepare --config=configs/prepare.py:data=files,against=coco --config.data.root=FOLDER \\
        --config.against.root=COCO --config.overlap=drop --config.out=OUT
    python -m maskvlm_jax.prepare --config=configs/prepare.py --config.out=OUT --config.verify=True
"""

from ml_collections import ConfigDict

from configs import common, data_sets


def get_config(arg: str = "") -> ConfigDict:
    """The config of a preparation; `arg` is the text after the colon."""
    choice = common.parse_arg(arg, data=data_sets.DATA, against=("none", *data_sets.DATA))
    config = ConfigDict()
    config.task = "prepare"
    config.name = choice["data"]
    config.data = data_sets.data_block(choice["data"])
    config.image_size = 64  # pixels that generated scenes are drawn at

    config.out = ""  # folder of the shards, one folder a split in it
    config.splits = ()  # () = all that the set has
    config.expected = ()  # examples that each of the splits should have; () = those that the set itself lists
    config.examples_per_shard = 5_000
    config.resize = 0  # short side in pixels of pictures that are larger; 0 = all bytes are kept as they are
    config.quality = 90  # JPEG quality of those that are resized
    config.min_size = 32  # pictures with a shorter side are left out
    config.drop_duplicates = True  # of equal bytes the first is kept
    # A set whose pictures must not be trained on, such as one that is scored; found by perceptual hashes of 64 bits.
    config.against_name = choice["against"]
    config.against = ConfigDict()
    if choice["against"] != "none":
        config.against = data_sets.data_block(choice["against"])
        config.against.split = common.evaluation_block(choice["against"]).split
    # Bits in which the hashes of two pictures differ that count as one. Resized and re-encoded copies differ in 0 to 4;
    # of the 6 million pairs of Flickr8k's train and dev pictures none differs in less than 10.
    config.against_distance = 6
    config.overlap = "report"  # report | drop
    config.workers = 0  # processes; 0 = as many as cores
    config.verify = False  # only reads what is in `out` and compares it with its manifests
    return config
