"""What a run starts from: its own checkpoint, another run's model, or nothing; and its tokenizer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from maskvlm_jax import buckets, checkpoint, processes, train_step, upgrade
from maskvlm_jax import config as configs
from maskvlm_jax import workdir as workdirs
from maskvlm_jax.checkpoint import Checkpoints
from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.data.sources import Mixture, Source
from maskvlm_jax.data.tokenizer import Tokenizer
from maskvlm_jax.errors import UserError
from maskvlm_jax.pretrainer import objective_class
from maskvlm_jax.train_step import TrainState


def check(config: ConfigDict, workdir: Path | None = None) -> None:
    """What a run starts from and reads must be there.

    Args:
        workdir: of the run; where it has checkpoints of its own, that of another run is not read.

    Raises:
        UserError: no workdir to fine-tune, one of another model, a tokenizer that the model does not fit, or an
            objective that reads a moving average where there is none.
    """
    if config.task == "finetune" and not config.checkpoint:
        raise UserError("fine-tuning starts from a model; set --config.checkpoint to the workdir of a run")
    if config.checkpoint and not (buckets.folder(config.checkpoint) / "config.json").is_file():
        raise UserError(f"there is no workdir {config.checkpoint!r}; set --config.checkpoint to the folder of a run")
    if config.checkpoint:
        _check_same_model(config, upgrade.read(buckets.folder(config.checkpoint) / "config.json")["model"])
        if workdir is None or not any((workdir / "checkpoints").glob("*")):
            checkpoint.open_run(buckets.folder(config.checkpoint), config.checkpoint_step)[0].close()
    if given := _given_tokenizer(config):
        _check_tokenizer(config, tokenizers.load(given))
    check_objectives(config)


def check_objectives(config: ConfigDict) -> None:
    """Every objective is there, with the moving average that it may read.

    Raises:
        UserError: one is not.
    """
    for label, objective in config.objectives.items():
        if objective.weight and objective_class(objective.name).reads_teacher and not config.optim.ema_decay:
            raise UserError(
                f"objectives.{label} reads a moving average of the model; set --config.optim.ema_decay=0.995"
            )


# Values of `config.model` that may differ from those of the run that a run starts from: no parameter's meaning depends
# on them.
_FREE = ("dropout", "temperature", "shared.remat", "shared.unroll", "shared.dtype")


def _check_same_model(config: ConfigDict, trained: dict[str, Any]) -> None:
    differing = workdirs.differing_keys({"model": trained}, {"model": configs.to_json(config)["model"]})
    differing = [key for key in differing if not key.endswith(_FREE)]
    if differing:
        raise UserError(
            f"the model of {config.checkpoint} has other values of {', '.join(differing)}; "
            f"give the structure and flags that it was trained with: {workdirs.as_flags(differing, {'model': trained})}"
        )


def restore_or_init(config: ConfigDict, checkpoints: Checkpoints, built: Any) -> tuple[TrainState, dict[str, Any]]:
    """The newest checkpoint of the workdir, else new parameters, else those of `config.checkpoint`."""
    abstract = train_step.abstract_state(built.init, built.shardings)
    restored = checkpoints.restore_newest(abstract)
    if restored is not None:
        return restored
    state = built.init()
    if config.checkpoint:
        params = _initial_params(config, state.params, abstract.params)
        state = state._replace(params=params, ema=jax.tree.map(lambda x: x.copy(), params) if state.ema else {})
    return state, {"seen": 0, "replaced": 0, "broken": {}, "best": -1.0, "best_step": 0}


def _initial_params(config: ConfigDict, params: Any, abstract: Any) -> Any:
    """`params` with the model of the workdir `config.checkpoint`, and the heads of objectives that both train."""
    folder = buckets.folder(config.checkpoint)
    trained = upgrade.read(folder / "config.json")["objectives"]
    own = configs.to_json(config)["objectives"]
    # An objective without parameters is not in the tree, and a tree without leaves cannot be asked for.
    heads = abstract.get("objectives", {})
    shared = {label: head for label, head in heads.items() if _same_head(own[label], trained.get(label))}
    for label in sorted(heads.keys() - shared.keys()):
        print(f"objectives.{label} has no head of its kind in {folder}: it starts from new parameters")
    wanted = {"vlm": abstract["vlm"], **({"objectives": shared} if shared else {})}
    checkpoints, step = checkpoint.open_run(folder, config.checkpoint_step)
    loaded = checkpoints.load_params(step, wanted, part=True)
    checkpoints.close()
    merged = params.get("objectives", {}) | loaded.get("objectives", {})
    return {"vlm": loaded["vlm"], **({"objectives": merged} if merged else {})}


# Arguments of objectives that say how a head is trained, not what its parameters are.
_TRAINING_ARGUMENTS = ("weight", "negatives", "hardness", "ramp", "pool", "alpha", "queue", "other", "norm", "region")


def _same_head(own: dict[str, Any], trained: dict[str, Any] | None) -> bool:
    """Whether two objectives have one kind of head: the same label may stand for another class or other sizes."""
    if trained is None or not trained["weight"]:
        return False
    kinds = ({key: value for key, value in x.items() if key not in _TRAINING_ARGUMENTS} for x in (own, trained))
    return configs.flatten(next(kinds)) == configs.flatten(next(kinds))


def tokenizer(config: ConfigDict, source: Source, workdir: Path) -> Tokenizer:
    """The workdir's tokenizer; made on the first start, from the checkpoint that the run starts from, the config's
    folder, or the training captions."""
    folder = workdir / "tokenizer"
    if processes.is_main() and not buckets.was_made(folder):
        if given := _given_tokenizer(config):
            tokenizers.load(given)
            tokenizers.copy(given, folder)
        else:
            captions = training_captions(source, config.data.tokenizer_captions, config.data.get("limit", 0))
            tokenizers.save(tokenizers.train_wordpiece(captions, config.model.text.vocab_size), folder)
    processes.barrier("tokenizer")
    tokenizer = tokenizers.load(folder)
    _check_tokenizer(config, tokenizer)
    return tokenizer


def training_captions(source: Source, most: int, limit: int = 0) -> Iterator[str]:
    """All captions of the first `most` pictures; `limit`: of those that are trained on, 0 = all."""
    if isinstance(source, Mixture):
        pictures = source.first(most)
    else:
        pictures = range(min(len(source), limit or len(source), most))
    return (caption for i in pictures for caption in source.captions(i))


def _given_tokenizer(config: ConfigDict) -> str:
    """A folder, or "" where the tokenizer is to be trained."""
    if config.checkpoint:
        return f"{config.checkpoint}/tokenizer"
    return config.data.tokenizer


def _check_tokenizer(config: ConfigDict, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > config.model.text.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {config.model.text.vocab_size}; "
            f"set --config.model.text.vocab_size={tokenizer.vocab_size} or more"
        )
    mask_id = config.model.text.get("mask_id", tokenizer.mask_id)
    if mask_id != tokenizer.mask_id:
        raise UserError(
            f"model.text.mask_id is {mask_id}, the tokenizer's mask token {tokenizer.mask_id}; "
            f"set --config.model.text.mask_id={tokenizer.mask_id}"
        )
