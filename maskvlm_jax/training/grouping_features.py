"""Features of the training set by an earlier model, by which examples are grouped: made once, kept in the workdir."""

import hashlib
import io
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from maskvlm_jax.data import examples
from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.data.evaluation_set import load_evaluation
from maskvlm_jax.data.grouping import Grouped, Grouping, whole_numbers
from maskvlm_jax.data.sources.base import Source
from maskvlm_jax.data.sources.training_set import TrainingSet
from maskvlm_jax.evaluators.encoding import embed_images, embed_texts
from maskvlm_jax.evaluators.predictor import Functions, Predictor
from maskvlm_jax.objectives.base import TrainsEmbeddings, objective_of
from maskvlm_jax.runtime import buckets, files, processes
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import rules, run_folder
from maskvlm_jax.settings.run_folder import GROUPING_FEATURES as FEATURES
from maskvlm_jax.settings.run_folder import GROUPING_RECORD as RECORD
from maskvlm_jax.training import stored_model, train_step

BATCH = 128


def check(config: ConfigDict, workdir: Path, *, begun: bool) -> None:
    """To be called before anything is written.

    Args:
        begun: the workdir's run goes on, with what it has.

    Raises:
        UserError: what the examples are grouped by is not there, or the run cannot read it.
    """
    options = config.data.get("grouping", {})
    if not options or not options.checkpoint:
        return
    if config.data.mixture:
        raise UserError("data.grouping is for a single set, not for a mixture; set --config.data.grouping.checkpoint=")
    if buckets.is_remote(workdir):
        raise UserError("data.grouping keeps its features in the workdir, which must be on this machine; give another")
    if options.part < 2 * config.batch_size:
        raise UserError(
            f"data.grouping.part {options.part} holds fewer than two batches of {config.batch_size}: nothing would be "
            f"grouped; set --config.data.grouping.part={8 * config.batch_size}"
        )
    there = buckets.folder(options.checkpoint) / "config.json"
    if not begun and not there.is_file():
        raise UserError(
            f"there is no workdir {options.checkpoint!r} to group examples by; "
            "set --config.data.grouping.checkpoint to the folder of a run or an export"
        )


def grouped(config: ConfigDict, workdir: Path, source: TrainingSet, mesh: jax.sharding.Mesh) -> TrainingSet:
    """The training set in the order that `config.data.grouping` asks for; to be called under the mesh.

    Raises:
        UserError: the model that examples are grouped by cannot be read or has no contrastive space, or what it made of
            them is damaged.
    """
    options = config.data.get("grouping", {})
    if not options or not options.checkpoint:
        return source
    whole, count = source.part("")
    asked = {"checkpoint": options.checkpoint, "checkpoint_step": options.checkpoint_step}
    asked |= {"examples": count, "data": whole.fingerprint}
    told, began = record(workdir) or {}, run_folder.of_a_run(workdir)
    processes.barrier("grouping asked for")  # by all, before one of them writes
    # What a command made whose run never began may be of other values. What a run has begun with stays.
    if not told or not (began or asked.items() <= told.items()):
        _make(asked, workdir, whole, mesh)
        processes.barrier("grouping made")
    sha256 = _sha256_of(workdir)
    grouping = Grouping(workdir / FEATURES, batch_size=config.batch_size, part=options.part, ranks=tuple(options.ranks))
    return Grouped(whole, count, grouping, sha256)


def record(workdir: Path) -> dict[str, Any] | None:
    """What the examples of a run were grouped by; None if they were not."""
    path = workdir / RECORD
    return files.read_json(path) if path.is_file() else None


def _make(asked: dict[str, Any], workdir: Path, source: Source, mesh: jax.sharding.Mesh) -> None:
    """Writes the features of the first examples of a source, and what they are of."""
    folder, count = buckets.folder(asked["checkpoint"]), asked["examples"]
    model = stored_model.read(folder, mesh, step=asked["checkpoint_step"])
    if objective_of(rules.active_objectives(model.config), TrainsEmbeddings) is None:
        raise UserError(f"{folder} has no contrastive space to group examples in; give a run that trained one")
    print(f"examples are grouped by what {folder} makes of them: {count:,} are encoded once", flush=True)
    features_2NE = _features(model, tokenizers.load(folder / "tokenizer"), source, count, mesh)
    told = asked | {"step": model.step, "parameters_sha256": train_step.parameters_sha256(model.params)}
    if processes.is_main():
        content = io.BytesIO()
        np.save(content, features_2NE)
        files.write_bytes(workdir / FEATURES, content.getbuffer())
        told["sha256"] = hashlib.sha256(content.getbuffer()).hexdigest()
        files.write_json(workdir / RECORD, told)


def _features(
    model: stored_model.StoredModel, tokenizer: tokenizers.Tokenizer, source: Source, count: int, mesh: Any
) -> np.ndarray:
    """(2, N, E) int8 of pictures and of texts, the mean of all captions; zeros of examples that cannot be used."""
    config = model.config
    data = load_evaluation(
        source,
        examples.fields_of(config, tokenizer),
        image_size=config.model.image.image_size,
        masking_options=config.masking.to_dict(),
        seed=0,
        limit=count,
        captions_per_image=0,
        memory=int(1e9 * config.evaluation.memory_gb),
        one_at_a_time=False,
    )
    objectives = rules.active_objectives(config)
    predictor = Predictor(Functions(model.graphdef), model.params, objectives=objectives, mesh=mesh)
    size = predictor.pair_batch(BATCH)
    image_IE, caption_TE = (embed(predictor, data, size) for embed in (embed_images, embed_texts))
    text_IE = np.zeros_like(image_IE)
    np.add.at(text_IE, data.image_of_caption, caption_TE)
    numbers = {source.id(index): index for index in range(count)}
    places = [numbers[name] for name in data.ids]
    features_2NE = np.zeros((2, count, image_IE.shape[1]), np.int8)
    features_2NE[:, places] = whole_numbers(image_IE), whole_numbers(text_IE)
    return features_2NE


def _sha256_of(workdir: Path) -> str:
    """That of the features, which must be the record's."""
    path, told = workdir / FEATURES, files.read_json(workdir / RECORD)
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; restore it, or give another --workdir") from error
    if found != told["sha256"]:
        raise UserError(f"{path} is damaged: its sha256 is not that of {RECORD}; restore it, or give another --workdir")
    return found
