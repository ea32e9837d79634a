"""Pre-training: MaskVLM (Kwon et al. 2023, arXiv 2208.02131) and the recipes beside it.

    python -m maskvlm_jax.main --config=configs/pretrain.py                              # tiny, generated scenes, a CPU
    python -m maskvlm_jax.main --config=configs/pretrain.py:size=base,data=coco --config.data.root=FOLDER
    python -m maskvlm_jax.main --config=configs/pretrain.py:size=base,data=coco+vg+sbu+cc3m

The text after the colon picks structure (recipe, size, data), flags pick values: --config.optim.lr=1e-3.
"""

from ml_collections import ConfigDict

from configs import common, data_sets, recipes


def get_config(arg: str = "") -> ConfigDict:
    """The config of a run; `arg` is the text after the colon."""
    allowed = {"recipe": recipes.RECIPES, "size": common.SIZES, "data": data_sets.DATA}
    choice = common.parse_arg(arg, mixed="data", file="recipe", **allowed)
    recipe, size, data = choice["recipe"], choice["size"], choice["data"]
    setting = recipes.Setting(
        short=size not in common.PAPER_SIZES, photographs=data != "scenes", decoder_depth=common.decoder_depth(size)
    )

    config = ConfigDict()
    config.task = "pretrain"
    config.name = f"{recipes.short_name(recipe)}-{size}-{data}"
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

    # Encoders that were trained elsewhere: a folder or file, or a name on the Hugging Face hub. What they are (depth,
    # width, patch, ...) follows from them. The family is told by the folder, or a .py file.
    config.init = ConfigDict({"image": "", "text": "", "image_family": "auto", "text_family": "auto"})

    config.data = data_sets.data_block(data)
    common.set_size(config, size)
    config.optim = _optim()
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "model": 1})  # -1: the devices that are left
    config.evaluation, config.evals = common.evaluation_block(data), common.evals_block()
    recipes.apply(recipe, config, setting)
    _schedule(config, size, data)
    return config


def _optim() -> ConfigDict:
    return ConfigDict(
        {
            "lr": 3e-4,
            "encoder_lr": 3e-4,  # of the two encoders; the paper's 1e-5 is for encoders that were read in
            # Regular expressions of paths of parameters that stay as they are, such as "vlm/image_encoder". A mask
            # token learns in any case.
            "freeze": (),
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


def _schedule(config: ConfigDict, size: str, data: str) -> None:
    """Steps and rates of a size on a set."""
    if size in common.PAPER_SIZES:
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
    if size == "tiny":
        config.steps = 1_200
        config.log_every, config.eval_every, config.checkpoint_every = 20, 300, 150
    elif size == "mini":
        config.batch_size = 128
        config.steps = 1_000
        config.eval_every = config.checkpoint_every = 200
        config.optim.weight_decay = 0.1
    elif size == "encoders":
        config.epochs, config.steps = 8.0, 0
        config.optim.lr, config.optim.encoder_lr, config.optim.temperature_rate = 1e-3, 5e-5, 1.0
        config.batch_size, config.log_every = 64, 20
        config.eval_every = config.checkpoint_every = 250
    if data == "flickr8k":
        # Whole scenes: captions tell of people, dogs and what is around them, which small crops lose.
        config.data.augment.crop_scale = (0.4, 1.0)
