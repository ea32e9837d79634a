"""Scores of a model on a split, with the protocol they were taken under; inside training and alone."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from maskvlm_jax import buckets, files, initial, metrics, processes, sharding, train_step, upgrade
from maskvlm_jax import config as configs
from maskvlm_jax import lineage as lineages
from maskvlm_jax import workdir as workdirs
from maskvlm_jax.checkpoint import open_run
from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.data.evaluation import EvaluationSet, load_evaluation
from maskvlm_jax.data.sources import open_source, open_training_source
from maskvlm_jax.data.tokenizer import Tokenizer
from maskvlm_jax.errors import UserError, writing
from maskvlm_jax.evaluators import baselines, figures, matching, probes, retrieval
from maskvlm_jax.evaluators.predictor import Functions, Predictor
from maskvlm_jax.pretrainer import Pretrainer

Metrics = dict[str, float]
NEIGHBOUR_PICTURES = 10_000  # training pictures whose captions the baseline of masked words is fitted to


class ChosenScore(NamedTuple):
    """A formula of `retrieval.SCORES`, and the split, pictures and recalls by formula that it was chosen by."""

    name: str
    chosen_on: dict[str, Any] | None = None


class Evaluation:
    """Evaluates parameters of one model; splits are read and functions compiled once.

    Args:
        config: of the run.
        graphdef: of the `Pretrainer`.
        tokenizer: of the run.
        mesh: batches are split over it.
        trained_on: `config.data` of the training, where another set is scored.
    """

    def __init__(
        self,
        config: ConfigDict,
        graphdef: nnx.GraphDef,
        tokenizer: Tokenizer,
        mesh: Mesh,
        trained_on: ConfigDict | None = None,
    ):
        self._trained_on = config.data if trained_on is None else trained_on
        self._config, self._tokenizer, self._mesh = config, tokenizer, mesh
        self._functions, self._sets, self._neighbours = Functions(graphdef), {}, None
        self._objectives = tuple(label for label, objective in config.objectives.items() if objective.weight)

    def data(self, split: str) -> EvaluationSet:
        """The pictures and captions of a split."""
        if split not in self._sets:
            config, image, options = self._config, self._config.model.image, self._config.evaluation
            source = open_source(config.data.to_dict(), split, image.image_size)
            self._sets[split] = load_evaluation(
                source,
                self._tokenizer,
                image_size=image.image_size,
                patch=image.patch,
                max_length=config.model.text.max_length,
                masking_options=config.masking.to_dict(),
                seed=options.seed,
                limit=options.limit,
                captions_per_image=options.captions_per_image,
                one_at_a_time=config.masking.policy == "modality_aware" or image.hidden == "token",
            )
            if self._sets[split].broken:
                broken = self._sets[split].broken
                print(f"warning: {len(broken)} picture(s) of {split} cannot be used and are left out: {broken[0]}")
        return self._sets[split]

    def choose_score(self, params: Any) -> ChosenScore:
        """The formula that re-ranks: that of the config, or with "auto" the best on the validation split.

        Where that split is the one that is scored, or cannot be read, nothing is chosen: the formula is then the one
        that matching was trained for, see `objectives.matching`.
        """
        options, predictor = self._config.evaluation, self.predictor(params)
        if options.rerank_score != "auto":
            return ChosenScore(options.rerank_score)
        if not options.rerank_k or not {"contrastive", "matching"} <= set(self._objectives):
            return ChosenScore("itm")
        objective = self._config.objectives.matching
        trained_for = ChosenScore("itm+itc" if objective.negatives == "hard" and objective.hardness else "itm")
        if options.during in (options.split, *options.also):
            return trained_for
        try:
            data = self.data(options.during)
        except UserError as error:
            print(f"re-ranked by {trained_for.name}, as the split {options.during} cannot be read: {error}")
            return trained_for
        data = data.first(min(options.choose_images or len(data.images), len(data.images)))
        recalls = retrieval.compare_scores(predictor, data, batch_size=options.batch_size, k=options.rerank_k)
        chosen = max(recalls, key=recalls.get)
        return ChosenScore(chosen, {"split": options.during, "images": len(data.images), "mean_recall": recalls})

    def retrieval(self, params: Any, split: str, *, rerank_score: str = "") -> Metrics:
        """Recalls in percent, re-ranked too where a formula is given; nothing where the model ranks neither by
        features nor by matching."""
        options = self._config.evaluation
        return dict(
            retrieval.evaluate(
                self.predictor(params),
                self.data(split),
                batch_size=options.batch_size,
                match_images=options.match_images,
                rerank_k=options.rerank_k if rerank_score else 0,
                rerank_score=rerank_score,
            )
        )

    def matching(self, params: Any, split: str) -> Metrics:
        """Whether matched pairs are told from random ones."""
        options = self._config.evaluation
        sizes = {"batch_size": options.batch_size, "limit": options.probe_limit}
        return dict(matching.evaluate(self.predictor(params), self.data(split), **sizes))

    def probes(self, params: Any, split: str) -> Metrics:
        """Masked losses with the matched, a wrong and no other modality."""
        options = self._config.evaluation
        sizes = {"batch_size": options.batch_size, "limit": options.probe_limit}
        return dict(
            probes.evaluate(self.predictor(params), self.data(split), **sizes, neighbours=self._neighbour_words)
        )

    def quick(self, params: Any, split: str) -> Metrics:
        """What is scored during training: recalls before re-ranking, and of random pairs; the probes of a model that
        ranks nothing."""
        return self.retrieval(params, split) | self.matching(params, split) or self.probes(params, split)

    def all(self, params: Any, split: str, rerank_score: str) -> Metrics:
        """Recalls before and after re-ranking, random pairs, and the cross-modal probes."""
        ranked = self.retrieval(params, split, rerank_score=rerank_score)
        return ranked | self.matching(params, split) | self.probes(params, split)

    def _neighbour_words(self) -> baselines.NeighbourWords | None:
        """Fitted to the captions that the run was trained on; None, with a line, where they are not there."""
        if self._neighbours is None:
            data, length = self._trained_on.to_dict(), self._config.model.text.max_length
            try:
                source = open_training_source(data, self._config.model.image.image_size)
            except UserError as error:
                print(f"masked_text_accuracy_neighbours is left out, no training captions: {error}")
                return None
            captions = initial.training_captions(source, NEIGHBOUR_PICTURES, data.get("limit", 0))
            encoded = [self._tokenizer.encode(caption, length) for caption in captions]
            tokens_TL, _, valid_TL = (np.stack(arrays) for arrays in zip(*encoded, strict=True))
            self._neighbours = baselines.NeighbourWords(tokens_TL, valid_TL, self._tokenizer.vocab_size)
        return self._neighbours

    def figures(self, params: Any, split: str, folder: Path) -> dict[str, np.ndarray]:
        """Writes the figures of a split as PNG and Markdown; returns the pictures by name."""
        count, size = self._config.evaluation.figures, self._config.evaluation.batch_size
        predictor, data, sheets = self.predictor(params), self.data(split), {}
        count = min(count, size)
        if count and {"masked_image", "masked_feature"} & set(self._objectives):
            sheets["reconstruction"] = figures.reconstructions(predictor, data, count=count, batch_size=size)
        texts = None
        if count and "masked_text" in self._objectives:
            texts = figures.masked_texts(predictor, data, self._tokenizer, count=count, batch_size=size)
            sheets["masked_text"] = figures.masked_text_sheet(data, texts)
        if not processes.is_main():
            return sheets
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if texts is not None:
                files.write_text(folder / f"masked_text_{_file_name(split)}.md", figures.masked_text_table(data, texts))
            for name, sheet in sheets.items():
                files.write_bytes(folder / f"{name}_{_file_name(split)}.png", figures.png(sheet))
        return sheets

    @property
    def data_name(self) -> str:
        """The kind of source that is scored; of a mixture the name of the set."""
        data = self._config.data
        return data.scored if data.mixture else data.source

    @cached_property
    def examples_trained_on(self) -> dict[str, int]:
        """How many examples of each scored split were trained on, where that can be told."""
        return lineages.examples_trained_on(self._config, self._trained_on)

    def protocol(self, split: str) -> dict[str, Any]:
        """What a number must be quoted with."""
        data, options = self.data(split), self._config.evaluation
        return {
            "source": self.data_name,
            "split": split,
            "data_sha256": data.fingerprint,
            "images": len(data.images),
            "captions": len(data.captions),
            "captions_per_image": len(data.captions) / len(data.images),
            "broken_images": len(data.broken),
            "examples_trained_on": self.examples_trained_on.get(split),
            "image_size": self._config.model.image.image_size,
            "weights": options.weights,
            "rerank_k": options.rerank_k,
            "match_images": min(options.match_images or len(data.images), len(data.images)),
            "ties": "count against the model",
            "probe_images": min(options.probe_limit or len(data.images), len(data.images)),
        }

    def predictor(self, params: Any) -> Predictor:
        """The compiled functions with these parameters."""
        return Predictor(self._functions, params, objectives=self._objectives, mesh=self._mesh)


def final_result(
    evaluation: Evaluation,
    config: ConfigDict,
    params: Any,
    *,
    folder: Path,
    lineage: Mapping[str, Any],
    on_figure: Callable[[str, np.ndarray], None] = lambda name, sheet: None,
) -> dict[str, Any]:
    """Evaluates `evaluation.split` and the splits of `evaluation.also`, draws figures, writes result.json.

    Metrics of the other splits are named SPLIT/metric. `on_figure` gets each figure's name and pixels.
    """
    split = config.evaluation.split
    score = evaluation.choose_score(params)
    values = evaluation.all(params, split, score.name)
    for other in config.evaluation.also:
        values |= {f"{other}/{name}": value for name, value in evaluation.all(params, other, score.name).items()}
    for name, sheet in evaluation.figures(params, split, folder / "figures").items():
        on_figure(name, sheet)
    protocols = {other: evaluation.protocol(other) for other in config.evaluation.also}
    result = {
        "protocol": {
            **lineage,
            **evaluation.protocol(split),
            "rerank_score": score.name,
            **({"rerank_score_chosen_on": score.chosen_on} if score.chosen_on else {}),
            **({"also": protocols} if protocols else {}),
        },
        "metrics": values,
    }
    if processes.is_main():
        files.write_json(folder / "result.json", result)
    return result


def show(result: Mapping[str, Any], folder: Path) -> None:
    """Prints a result as a table."""
    protocol = result["protocol"]
    told = f"\n{protocol['split']}: {protocol['images']} images, {protocol['captions']} captions"
    if "rerank_mean_recall" in result["metrics"]:
        told += f", re-ranked top {protocol['rerank_k']} by {protocol['rerank_score']}"
        if chosen_on := protocol.get("rerank_score_chosen_on"):
            told += f" (the best on {chosen_on['split']})"
    if "match_mean_recall" in result["metrics"]:
        told += f", matching among the first {protocol['match_images']}"
    print(told)
    print(metrics.table(result["metrics"]))
    print(f"\nresults, figures and checkpoints are in {folder}")


def _file_name(split: str) -> str:
    return re.sub(r"[^\w.+-]", "_", split)


class Loaded(NamedTuple):
    """A checkpoint's model, ready to be scored under a mesh."""

    config: ConfigDict
    evaluation: Evaluation
    params: Any
    lineage: dict[str, Any]


@contextmanager
def loaded(config: ConfigDict) -> Iterator[Loaded]:
    """The model of `config.checkpoint`, with its mesh set.

    Raises:
        UserError: there is no such workdir, or nothing in it that can be read.
    """
    source = buckets.folder(config.checkpoint)
    if not config.checkpoint or not source.is_dir():
        raise UserError(f"there is no workdir {config.checkpoint!r}; set --config.checkpoint to the folder of a run")
    trained = ConfigDict(upgrade.read(source / "config.json"))
    trained_on = trained.data.copy_and_resolve_references()  # which the set that is scored takes the place of
    trained = configs.merge_evaluation(trained, config)
    configs.check(trained)
    tokenizer = tokenizers.load(source / "tokenizer")
    mesh = sharding.make_mesh(**trained.mesh)
    sharding.check_batch(trained.evaluation.batch_size, 1, mesh)
    with jax.set_mesh(mesh):
        graphdef, abstract = train_step.abstract_params(
            lambda: Pretrainer(**configs.model_arguments(trained), rngs=nnx.Rngs(0)), mesh
        )
        checkpoints, step = open_run(source, config.checkpoint_step)
        params = checkpoints.load_params(step, abstract, weights=trained.evaluation.weights)
        told = checkpoints.load_progress(step)
        checkpoints.close()
        lineage = lineages.lineage_of(trained, source, step, params, told, trained_on)
        yield Loaded(trained, Evaluation(trained, graphdef, tokenizer, mesh, trained_on), params, lineage)


def run(config: ConfigDict, workdir: Path) -> None:
    """`task = evaluate`: scores a checkpoint of a finished or running workdir.

    Raises:
        UserError: there is no such workdir, or nothing in it that can be read.
    """
    if (workdir / "config.json").exists():
        raise UserError(f"{workdir} is the workdir of a run, whose result would be replaced; give another --workdir")
    with loaded(config) as (trained, evaluation, params, lineage), workdirs.locked(workdir):
        for split, count in evaluation.examples_trained_on.items():
            lineages.tell_trained_on(split, count)
        result = final_result(evaluation, trained, params, folder=workdir, lineage=lineage)
    show(result, workdir)
