"""The tokenizer of a run: that of the model it starts from, a folder's, or one trained on its captions."""

from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.data.sources.training_set import TrainingSet
from maskvlm_jax.data.tokenizer import Tokenizer
from maskvlm_jax.models.pretrained import encoders
from maskvlm_jax.runtime import buckets, files, processes
from maskvlm_jax.runtime.errors import UserError


def check(config: ConfigDict) -> None:
    """A tokenizer that is given is there, and the model has as many tokens.

    Raises:
        UserError: naming the values.
    """
    if given := _given(config):
        _check_fits(config, tokenizers.load(given))


def resolve_mask_id(config: ConfigDict, workdir: Path | None = None) -> None:
    """Puts the mask token's number in the place of -1, where pictures share it, or words are hidden on the device.

    Args:
        workdir: of a run that goes on; None for one that begins.

    Raises:
        UserError: the tokenizer that is given cannot be read.
    """
    wanted = config.model.get("shared_mask", False) or config.masking.masker
    if wanted and config.model.text.mask_id == -1:
        given = _given(config) if workdir is None else str(workdir / "tokenizer")
        config.model.text.mask_id = (
            tokenizers.load(given).mask_id if given else tokenizers.SPECIAL.index(tokenizers.MASK)
        )


def tokenizer_of(config: ConfigDict, source: TrainingSet, workdir: Path) -> Tokenizer:
    """The workdir's tokenizer; made on the first start, from the checkpoint or the text encoder that the run starts
    from, the config's folder, or the training captions."""
    folder = workdir / "tokenizer"
    if processes.is_main() and not buckets.was_made(folder):
        if given := _given(config):
            tokenizers.load(given)
            tokenizers.copy(given, folder)
        else:
            captions = training_captions(source, config.data.tokenizer_captions)
            tokenizers.save(tokenizers.train_wordpiece(captions, config.model.text.vocab_size), folder)
    processes.barrier("tokenizer")
    tokenizer = tokenizers.load(folder)
    _check_fits(config, tokenizer)
    return tokenizer


def training_captions(source: TrainingSet, most: int) -> Iterator[str]:
    """All captions of about the first `most` pictures that are trained on."""
    return (caption for i in source.first(most) for caption in source.captions(i))


def _given(config: ConfigDict) -> str:
    """A folder, or "" where the tokenizer is to be trained."""
    if config.checkpoint and _reads_text(config.checkpoint):
        return f"{config.checkpoint}/tokenizer"
    if config.data.tokenizer or not config.init.text:
        return config.data.tokenizer
    return encoders.tokenizer_of(config)


def _reads_text(checkpoint: str) -> bool:
    """Whether the model of a workdir has learned what its tokens mean."""
    path = buckets.folder(checkpoint) / "config.json"  # of any release: older ones know no such kind
    return not path.is_file() or files.read_json(path)["model"]["text"].get("kind") != "none"


def _check_fits(config: ConfigDict, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > config.model.text.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {config.model.text.vocab_size}; "
            f"set --config.model.text.vocab_size={tokenizer.vocab_size} or more"
        )
    mask_id = config.model.text.mask_id
    if mask_id not in (-1, tokenizer.mask_id):
        raise UserError(
            f"model.text.mask_id is {mask_id}, the tokenizer's mask token {tokenizer.mask_id}; "
            f"set --config.model.text.mask_id={tokenizer.mask_id}"
        )
