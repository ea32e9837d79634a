"""Pre-training: MaskVLM (Kwon et al. 2023, arXiv 2208.02131) and the recipes beside it.

    python -m maskvlm_jax.main --config=configs/pretrain.py                              # tiny, generated scenes, a CPU
    python -m maskvlm_jax.main --config=configs/pretrain.py:size=base,data=coco --config.data.root=FOLDER
    python -m maskvlm_jax.main --config=configs/pretrain.py:size=base,data=coco+vg+sbu+cc3m

The text after the colon picks structure (recipe, size, data), flags pick values: --config.optim.lr=1e-3.
"""

from ml_collections import ConfigDict

from configs import common, recipes


def get_config(arg: str = "") -> ConfigDict:
    """The config of a run; `arg` is the text after the colon."""
    choice = common.parse_arg(arg, recipe=tuple(recipes.RECIPES), size=common.SIZES, data=common.DATA, mixed="data")
    size, data = choice["size"], choice["data"]

    config = ConfigDict()
    config.task = "pretrain"
    config.name = f"{choice['recipe']}-{size}-{data}"
    config.seed = 0
    # GPUs: only operations that give the same bits every time; slower. CPUs give the same bits anyway.
    config.deterministic = False
    config.steps = 1_000  # 0: `epochs` of the data
    config.epochs = 0.0  # 0: `steps`; where a flag sets one of the two, the other's default does not count
    config.batch_size = 64  # global
    config.log_every = 10
    config.eval_every = 250  # -1: a fiftieth of the run
    config.checkpoint_every = 250
    config.keep_checkpoints = 3
    config.checkpoint = ""  # a workdir whose parameters the run starts from
    config.checkpoint_step = "latest"  # of that workdir: latest | best | a number

    config.data = common.data_block(data)
    common.set_size(config, size)
    config.optim = ConfigDict(
        {
            "lr": 3e-4,
            "encoder_lr": 3e-4,  # of the two encoders; the paper's 1e-5 is for encoders that were read in
            "temperature_rate": 1.0,  # times `lr`: that of the temperature
            "warmup_steps": -1,  # -1: a tenth of the run
            "final_ratio": 0.1,  # of the peak rate, at the end of the cosine
            "weight_decay": 0.05,
            "b1": 0.9,
            "b2": 0.999,
            "clip_norm": 1.0,
            "accumulate": 1,  # microbatches a step, which give the gradients of the whole batch
            "ema_decay": 0.0,  # of a moving average of the parameters; 0 = off
            "ema_ramp": True,  # the decay rises from 0.1 as (1 + step) / (10 + step)
        }
    )
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "model": 1})  # -1: the devices that are left
    config.evaluation = common.evaluation_block(data)
    recipes.RECIPES[choice["recipe"]](config)
    del config.model.decoder_depth
    _schedule(config, size, data)
    return config


def _schedule(config: ConfigDict, size: str, data: str) -> None:
    """Steps and rates of a size on a set."""
    if size in ("base", "large"):
        # The paper: batches of 512 on 16 V100, 50 epochs of its 5.2 M pairs, 5 of them warm-up.
        config.batch_size = 512
        config.steps, config.epochs = 0, 50.0
        config.log_every, config.eval_every, config.checkpoint_every = 50, -1, 1_000
        return
    # From scratch: one rate for all, a second moment that follows a short run, and a temperature that follows it too:
    # its logarithm moves by at most a rate a step.
    config.optim.temperature_rate = 10.0
    config.optim.lr = config.optim.encoder_lr = 1.5e-3 if size == "tiny" else 1e-3
    config.optim.b2 = 0.98
    # The paper's L1 asks for the median, which is the background until an object is more likely than not: on `scenes`,
    # trained by itself, it painted none in 600 steps; the squared error did in 200.
    objectives = config.objectives
    if "norm" in objectives.get("masked_image", {}):
        objectives.masked_image.norm = "l2"
    if "queue" in objectives.get("contrastive", {}):
        objectives.contrastive.queue = 1_024  # a sixth of a set of 6,000 pictures, ten batches and more
    # The paper sums its losses unweighted. In a short run the contrastive gradient, divided by the temperature, is the
    # largest by far and that of the pixels the smallest (benchmarks/loss_gradients.py: 38 to 1 in the image encoder of
    # `mini` on photographs); these weights bring them closer.
    if "contrastive" in objectives and len(objectives) > 1:
        # The queue's loss is the mean of both directions where the other is their sum.
        objectives.contrastive.weight = 0.6 if "queue" in objectives.contrastive else 0.3
    if "masked_image" in objectives:
        objectives.masked_image.weight = 3.0
    if "hardness" in objectives.get("matching", {}) and data != "scenes":
        # On photographs matching learns nothing in 300 steps where negatives are drawn by similarity from the start,
        # and tells matched from random pairs where they are uniform at first (docs/reproducing.md). Scenes do without.
        objectives.matching.ramp = (0.3, 0.8)
    if size == "tiny":
        config.steps = 1_200
        config.log_every, config.eval_every, config.checkpoint_every = 20, 300, 150
    elif size == "mini":
        config.batch_size = 128
        config.steps = 1_000
        config.eval_every = config.checkpoint_every = 200
        config.optim.weight_decay = 0.1
    if data == "flickr8k":
        # Whole scenes: captions tell of people, dogs and what is around them, which small crops lose.
        config.data.augment.crop_scale = (0.4, 1.0)
