"""All evaluators of a run: its scores during training and at its end, with the protocol they were taken under."""

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from maskvlm_jax.evaluators import retrieval
from maskvlm_jax.evaluators.base import Evaluator
from maskvlm_jax.evaluators.predictor import Functions, Predictor
from maskvlm_jax.evaluators.scored_run import ScoredRun
from maskvlm_jax.runtime import files, metrics, plugins, processes
from maskvlm_jax.runtime import sheets as sheets_of
from maskvlm_jax.runtime.errors import UserError, writing
from maskvlm_jax.settings import rules
from maskvlm_jax.settings.choices import check_lines

Metrics = dict[str, float]


def evaluator_classes(config: ConfigDict) -> dict[str, type[Evaluator]]:
    """label -> class of each evaluator of `config.evals`, in the order of their metrics.

    Raises:
        UserError: there is no such evaluator.
    """
    check_lines(config.evals, "evals", ("name", "during"))
    found = {
        label: plugins.load("maskvlm_jax.evaluators", one.name, "Evaluator", "evaluator")
        for label, one in config.evals.items()
    }
    return dict(sorted(found.items(), key=lambda item: (item[1].place, item[0])))


class Evaluation:
    """Evaluates parameters of one model; splits are read and functions compiled once.

    Args:
        run: what is scored.
        graphdef: of the `Learner`.
        mesh: batches are split over it.
        examples_trained_on: how many examples of each scored split were trained on, as far as that can be told.
    """

    def __init__(
        self,
        run: ScoredRun,
        graphdef: nnx.GraphDef,
        mesh: Mesh,
        examples_trained_on: Callable[[], dict[str, int]] = dict,
    ):
        self.run, self._mesh, self._functions, self._count = run, mesh, Functions(graphdef), examples_trained_on
        shared = run.config.evaluation.to_dict()
        self.evaluators = {
            label: kind(run, shared | run.config.evals[label].to_dict())
            for label, kind in evaluator_classes(run.config).items()
        }

    @cached_property
    def examples_trained_on(self) -> dict[str, int]:
        """How many examples of each scored split were trained on, as far as that can be told."""
        return self._count()

    def predictor(self, params: Any) -> Predictor:
        """The compiled functions with these parameters."""
        return Predictor(self._functions, params, objectives=self.run.objectives, mesh=self._mesh)

    def quick(self, params: Any, split: str) -> Metrics:
        """The scores during training: those of the evaluators that have `during`; of a model that they all have nothing
        to say of, those of the others."""
        predictor, values = self.predictor(params), {}
        for during in (True, False):
            for one in self.evaluators.values():
                if one.options["during"] == during:
                    values |= dict(one.evaluate(predictor, split, final=False))
            if values:
                break
        return values

    def prepare(self, params: Any) -> None:
        """To be called before `all`."""
        for one in self.evaluators.values():
            one.prepare(self.predictor(params))

    def all(self, params: Any, split: str) -> Metrics:
        """The final scores of a split."""
        predictor, values = self.predictor(params), {}
        for one in self.evaluators.values():
            values |= dict(one.evaluate(predictor, split, final=True))
        return values

    def figures(self, params: Any, split: str, folder: Path) -> dict[str, np.ndarray]:
        """Writes the figures of a split as PNG and Markdown; returns the pictures by name."""
        predictor, sheets, pages = self.predictor(params), {}, {}
        for one in self.evaluators.values():
            drawn = one.figures(predictor, split)
            sheets, pages = {**sheets, **drawn.sheets}, {**pages, **drawn.pages}
        if processes.is_main():
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                for name, page in pages.items():
                    files.write_text(folder / f"{name}_{_file_name(split)}.md", page)
                for name, sheet in sheets.items():
                    files.write_bytes(folder / f"{name}_{_file_name(split)}.png", sheets_of.png(sheet))
        return sheets

    def write_files(self, split: str, folder: Path) -> None:
        """Writes what evaluators give to other programs of a split whose final scores were just taken."""
        for one in self.evaluators.values():
            for name, text in one.files(split).items():
                if processes.is_main():
                    stem, _, ending = name.rpartition(".")
                    files.write_text(folder / f"{stem}_{_file_name(split)}.{ending}", text)

    def protocol(self, split: str) -> dict[str, Any]:
        """What a number must be quoted with."""
        data, config = self.run.data(split), self.run.config
        shared = {
            "source": self.run.data_name,
            "split": split,
            "data_sha256": data.fingerprint,
            "images": len(data.images),
            "captions": len(data.captions),
            "captions_per_image": len(data.captions) / len(data.images),
            "broken_images": len(data.broken),
            "examples_trained_on": self.examples_trained_on.get(split),
            "image_size": config.model.image.image_size,
            "weights": config.evaluation.weights,
        }
        for one in self.evaluators.values():
            shared |= one.protocol(split)
        return shared


def final_result(
    evaluation: Evaluation,
    params: Any,
    *,
    folder: Path,
    lineage: Mapping[str, Any],
    on_figure: Callable[[str, np.ndarray], None] = lambda name, sheet: None,
) -> dict[str, Any]:
    """Evaluates `evaluation.split` and the splits of `evaluation.extra_splits`, draws figures, writes result.json.

    Metrics of the other splits are named SPLIT/metric. `on_figure` gets each figure's name and pixels.
    """
    options = evaluation.run.config.evaluation
    evaluation.prepare(params)
    values = evaluation.all(params, options.split)
    evaluation.write_files(options.split, folder)
    extra = [split for split in dict.fromkeys(options.extra_splits) if split != options.split]
    for other in extra:
        values |= {f"{other}/{name}": value for name, value in evaluation.all(params, other).items()}
        evaluation.write_files(other, folder)
    for name, sheet in evaluation.figures(params, options.split, folder / "figures").items():
        on_figure(name, sheet)
    others = {other: evaluation.protocol(other) for other in extra}
    protocol = {**lineage, **evaluation.protocol(options.split), **({"also": others} if others else {})}
    result = {"protocol": protocol, "metrics": values}
    if processes.is_main():
        files.write_json(folder / "result.json", result)
    return result


def show(result: Mapping[str, Any], folder: Path) -> None:
    """Prints a result as a table."""
    protocol = result["protocol"]
    heading = f"\n{protocol['split']}: {protocol['images']} images, {protocol['captions']} captions"
    print(heading + retrieval.heading(result))
    print(metrics.table(result["metrics"]))
    print(f"\nresults, figures and checkpoints are in {folder}")


def _file_name(split: str) -> str:
    return re.sub(r"[^\w.+-]", "_", split)


# --- which metric chooses the checkpoint that is kept as the best; larger is better ----------------------------------


def check_best_metric(config: ConfigDict) -> None:
    """To be called before the first step: the first evaluation may come hours later.

    Raises:
        UserError: `evaluation.best_metric` is not one of those that are taken, or an evaluator is not there.
    """
    _check_best(config.evaluation.best_metric, metrics_during(config))


def metrics_during(config: ConfigDict) -> tuple[str, ...]:
    """What evaluations during a training take, see `Evaluation.quick`."""
    classes, objectives = evaluator_classes(config), rules.active_objectives(config)
    for during in (True, False):
        names = (
            name
            for label, kind in classes.items()
            if config.evals[label].during == during
            for name in kind.metrics(objectives)
        )
        if found := tuple(names):
            return found
    return ()


def best_value(config: ConfigDict, values: Mapping[str, float]) -> float | None:
    """What counts of an evaluation's metrics; None if "auto" knows none of them.

    Raises:
        UserError: `evaluation.best_metric` is not one of them.
    """
    name = config.evaluation.best_metric
    if name == "auto":
        known = (metric for kind in evaluator_classes(config).values() for metric in kind.best)
        return next((values[metric] for metric in known if metric in values), None)
    _check_best(name, tuple(values))
    return values[name]


def _check_best(name: str, there: tuple[str, ...]) -> None:
    if name not in ("auto", *there):
        raise UserError(f"evaluation.best_metric {name} is no metric; choose among auto, {', '.join(there)}")
