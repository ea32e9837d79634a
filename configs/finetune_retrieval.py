"""Fine-tuning for retrieval, on the model of a pre-training run: contrastive and matching losses, nothing masked.

    python -m maskvlm_jax.main --config=configs/finetune_retrieval.py:recipe=maskvlm,size=tiny,data=scenes \\
        --config.checkpoint=runs/maskvlm-tiny-scenes

The structure after the colon is that of the pre-training run. A recipe without a contrastive space (mlim, m3ae) learns
to match against random negatives. Of the papers' sizes, pictures and captions that a batch holds more than once are
positives of each other (`--config.objectives.contrastive.positives=all`; at the other sizes they are left out). How
many candidates are re-ranked may be chosen on the validation split: `--config.evaluation.rerank_k=-1`.

Differs from the paper: the picture size is that of pre-training unless `--config.model.image.image_size` gives another
(384 pixels there; positions are resized), and the last step is scored beside the best one, which `best/` holds.
`--config.checkpoint_step=best` starts from the best checkpoint of the run, not from its newest. MLIM's modality dropout
is `--config.data.modality_dropout`; it is off, since a pair that has lost a side cannot be told matched from unmatched.
"""

from ml_collections import ConfigDict

from configs import pretrain
from configs.recipes import parts


def get_config(arg: str = "") -> ConfigDict:
    """The config of a fine-tuning run; `arg` is the text after the colon."""
    config = pretrain.get_config(arg)
    if config.model.text.kind == "none":
        raise ValueError(f"{config.name} reads no text: start another recipe of pretrain.py by --config.checkpoint")
    config.task = "finetune"
    config.name += "-retrieval"
    config.objectives, config.data.fields = ConfigDict(), ConfigDict()
    if config.model.embed:
        # positives: own | all (equal pictures and captions of other examples are positives too, as ALBEF has it)
        config.objectives.contrastive = ConfigDict({**parts.contrastive(), "positives": "own"})
    if config.model.fusion.kind != "none":
        config.objectives.matching = ConfigDict(parts.matching())
        config.objectives.matching.negatives = "hard" if config.model.embed else "random"
    config.optim.ema_decay, config.masking.masker = 0.0, ConfigDict()  # nothing is masked
    if config.batch_size >= 512:
        # The paper: 15 epochs of COCO or Flickr30k, batch 256, 1e-5.
        config.batch_size, config.epochs = 256, 15.0
        if config.model.embed:
            config.objectives.contrastive.positives = "all"
        config.optim.lr = config.optim.encoder_lr = 1e-5
        config.optim.warmup_steps, config.eval_every, config.checkpoint_every = 0, 440, 440
    else:
        # A third of the rates of pre-training, a quarter of its length.
        config.steps, config.epochs = config.steps // 4, config.epochs / 4
        config.optim.lr, config.optim.encoder_lr = config.optim.lr / 3, config.optim.encoder_lr / 3
    return config
