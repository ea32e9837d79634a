"""Image-text retrieval: contrastive features first, then matching scores re-rank the top k (ALBEF, arXiv 2107.07651).

Score formulas of the second stage, by name; m: the matching head's log-odds of "matched", s: the cosine of the
contrastive features, τ: their learned temperature:
    itm         m              as ALBEF, whose score is one of the two logits
    itm+itc     m + s / τ      p(T | I) up to a constant where negatives were drawn by s / τ, see `objectives.matching`
    itm+cosine  m + s          as BLIP (Li et al. 2022, arXiv 2201.12086)
Each direction has its own candidates: every picture's top k captions, every caption's top k pictures.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from maskvlm_jax.data.evaluation_set import EvaluationSet
from maskvlm_jax.evaluators import base, encoding, ranking
from maskvlm_jax.evaluators.predictor import Predictor
from maskvlm_jax.objectives.base import ScoresPairs, TrainsEmbeddings, label_of, objective_of
from maskvlm_jax.runtime.errors import UserError

# (log-odds, cosine, temperature) -> score
SCORES: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "itm": lambda match, cosine, temperature: match,
    "itm+itc": lambda match, cosine, temperature: match + cosine / temperature,
    "itm+cosine": lambda match, cosine, temperature: match + cosine,
}


# How many candidates may be chosen among; where there is no split to choose them on, the third.
CANDIDATES = (16, 32, 64, 128, 256)
DEFAULT_CANDIDATES = 64


class Chosen(NamedTuple):
    """How the second stage ranks.

    score: a formula of `SCORES`; k: candidates in each direction; chosen_on: the split, pictures and mean recalls by
    formula, or by k and formula, that they were chosen by; None = they were not chosen.
    """

    score: str
    k: int
    chosen_on: dict[str, Any] | None = None


METRICS = (*(f"{way}_r{k}" for way in ("i2t", "t2i") for k in ranking.RECALLS), "mean_recall")


class Evaluator(base.Evaluator):
    """Recalls of cosines, re-ranked at the end; of a model without a contrastive space those of matching."""

    place = 0
    best = ("mean_recall", "match_mean_recall")
    _chosen = Chosen("itm", 0)

    @classmethod
    def metrics(cls, objectives: Mapping[str, type]) -> tuple[str, ...]:
        if objective_of(objectives, TrainsEmbeddings):
            return METRICS
        return tuple(f"match_{name}" for name in METRICS) if objective_of(objectives, ScoresPairs) else ()

    def prepare(self, predictor: Predictor) -> None:
        self._chosen = self.choose(predictor)

    def choose(self, predictor: Predictor) -> Chosen:
        """Formula and number of candidates: those of the config, or the best on the validation split where it says
        "auto" and -1.

        If that split is itself scored, or cannot be read, nothing is chosen: the formula is then the one that matching
        was trained for, see `objectives.matching`.
        """
        options, objectives = self.options, self.run.objectives
        label, score, k = label_of(objectives, ScoresPairs), options["rerank_score"], options["rerank_k"]
        if not k or label is None or not predictor.offers(TrainsEmbeddings):
            return Chosen("itm" if score == "auto" else score, max(k, 0))
        if score != "auto" and k > 0:
            return Chosen(score, k)
        adds = objectives[label].adds_similarity(self.run.config.objectives[label])
        trained_for = ("itm+itc" if adds else "itm") if score == "auto" else score
        fixed = Chosen(trained_for, k if k > 0 else DEFAULT_CANDIDATES)
        split = options["validation_split"]
        if split in (options["split"], *options["extra_splits"]):
            return fixed
        try:
            data = self.run.data(split)
        except UserError as error:
            print(f"re-ranked by {fixed.score}, as the split {split} cannot be read: {error}")
            return fixed
        data = data.first(min(options["choose_images"] or len(data.images), len(data.images)))
        formulas, counts = (tuple(SCORES) if score == "auto" else (score,)), (CANDIDATES if k < 0 else (k,))
        recalls = compare(predictor, data, formulas, counts, batch_size=options["batch_size"])
        best_k, best = max(((k, name) for k in recalls for name in formulas), key=lambda one: recalls[one[0]][one[1]])
        told = recalls if k < 0 else recalls[k]
        return Chosen(best, best_k, {"split": split, "images": len(data.images), "mean_recall": told})

    def evaluate(self, predictor: Predictor, split: str, *, final: bool) -> Iterator[tuple[str, float]]:
        options = self.options
        return evaluate(
            predictor,
            self.run.data(split),
            batch_size=options["batch_size"],
            match_images=options["match_images"],
            rerank_k=self._chosen.k if final else 0,
            rerank_score=self._chosen.score,
        )

    def protocol(self, split: str) -> dict[str, Any]:
        images = len(self.run.data(split).images)
        return {
            "rerank_k": self._chosen.k,
            "match_images": min(self.options["match_images"] or images, images),
            "ties": "count against the model",
            "rerank_score": self._chosen.score,
            **({"rerank_score_chosen_on": self._chosen.chosen_on} if self._chosen.chosen_on else {}),
        }


def heading(result: Mapping[str, Any]) -> str:
    """How pictures and captions of a result were ranked, for the heading of its table."""
    protocol, metrics, text = result["protocol"], result["metrics"], ""
    if "rerank_mean_recall" in metrics:
        text += f", re-ranked top {protocol['rerank_k']} by {protocol['rerank_score']}"
        if chosen_on := protocol.get("rerank_score_chosen_on"):
            text += f" (the best on {chosen_on['split']})"
    if "match_mean_recall" in metrics:
        text += f", matching among the first {protocol['match_images']}"
    return text


def evaluate(
    predictor: Predictor,
    data: EvaluationSet,
    *,
    batch_size: int,
    match_images: int,
    rerank_k: int,
    rerank_score: str,
) -> Iterator[tuple[str, float]]:
    """Recalls in percent.

    With a contrastive space: of its cosines, and re-ranked ones where `rerank_k` is positive and a matching objective
    was trained. Without: `match_` recalls of matching alone among the first `match_images` pictures (0 = all).

    Args:
        rerank_score: a name of `SCORES`.
    """
    embeds, matches = predictor.offers(TrainsEmbeddings), predictor.offers(ScoresPairs)
    if not embeds and not matches:
        return
    if not embeds:
        yield from match_recalls(predictor, data.first(match_images or len(data.images)), batch_size).items()
        return
    if rerank_k and matches:
        stages = two_stages(predictor, data, batch_size=batch_size, k=rerank_k)
        yield from stages.first_recalls().items()
        yield from stages.recalls(rerank_score).items()
        return
    image_IE, text_TE = (
        encoding.embed_images(predictor, data, batch_size),
        encoding.embed_texts(predictor, data, batch_size),
    )
    yield from _recalls_of(image_IE @ text_TE.T, data.image_of_caption).items()


def _recalls_of(score_IT: np.ndarray, owner: np.ndarray, prefix: str = "") -> dict[str, float]:
    ranks = ranking.image_to_text_ranks(score_IT, owner), ranking.text_to_image_ranks(score_IT, owner)
    return ranking.recalls(*ranks, prefix)


class TwoStages(NamedTuple):
    """Cosines of all pairs, log-odds of the candidates, and what any score formula makes of them.

    top_texts_IT, top_images_IT: each picture's candidates, each caption's; match_IT: log-odds of both, -inf elsewhere;
    image_ranks, text_ranks: by the cosines.
    """

    cosine_IT: np.ndarray
    match_IT: np.ndarray
    top_texts_IT: np.ndarray
    top_images_IT: np.ndarray
    owner: np.ndarray
    temperature: float
    image_ranks: np.ndarray
    text_ranks: np.ndarray

    def of_first(self, k: int) -> "TwoStages":
        """The same with fewer candidates."""
        texts_IT, images_IT = ranking.top_k(self.cosine_IT, k), ranking.top_k(self.cosine_IT.T, k).T
        return self._replace(top_texts_IT=texts_IT, top_images_IT=images_IT)

    def first_recalls(self) -> dict[str, float]:
        """Recalls of the cosines."""
        return ranking.recalls(self.image_ranks, self.text_ranks)

    def recalls(self, score: str) -> dict[str, float]:
        """`rerank_` recalls by a formula of `SCORES`."""
        return rerank_recalls(
            SCORES[score](self.match_IT, self.cosine_IT, self.temperature),
            self.top_texts_IT,
            self.top_images_IT,
            self.owner,
            self.image_ranks,
            self.text_ranks,
        )


def two_stages(predictor: Predictor, data: EvaluationSet, *, batch_size: int, k: int) -> TwoStages:
    """Both stages of a set, with `k` candidates in each direction."""
    image_ISD, image_IE = encoding.encode_images(predictor, data, batch_size)
    text_TLD, text_TE = encoding.encode_texts(predictor, data, batch_size)
    cosine_IT = image_IE @ text_TE.T
    top_texts_IT, top_images_IT = ranking.top_k(cosine_IT, k), ranking.top_k(cosine_IT.T, k).T
    match_IT = encoding.match_scores(
        predictor, image_ISD, text_TLD, data.text["token_valid"], top_texts_IT | top_images_IT
    )
    owner = data.image_of_caption
    ranks = ranking.image_to_text_ranks(cosine_IT, owner), ranking.text_to_image_ranks(cosine_IT, owner)
    return TwoStages(cosine_IT, match_IT, top_texts_IT, top_images_IT, owner, predictor.temperature(), *ranks)


def compare(
    predictor: Predictor, data: EvaluationSet, formulas: Sequence[str], counts: Sequence[int], *, batch_size: int
) -> dict[int, dict[str, float]]:
    """k -> formula -> re-ranked mean recall, in the order that they are given, so that the first wins a tie."""
    stages = two_stages(predictor, data, batch_size=batch_size, k=max(counts))
    cut = ((k, stages.of_first(k)) for k in counts)
    return {k: {score: first.recalls(score)["rerank_mean_recall"] for score in formulas} for k, first in cut}


def match_recalls(predictor: Predictor, data: EvaluationSet, batch_size: int) -> dict[str, float]:
    """Recalls of matching every picture with every caption."""
    text_TLD, _ = encoding.encode_texts(predictor, data, batch_size)
    score_IT = encoding.all_scores(predictor, data, text_TLD, data.text["token_valid"], batch_size)
    return _recalls_of(score_IT, data.image_of_caption, prefix="match_")


def rerank_recalls(
    score_IT: np.ndarray,
    top_texts_IT: np.ndarray,
    top_images_IT: np.ndarray,
    owner: np.ndarray,
    image_ranks: np.ndarray,
    text_ranks: np.ndarray,
) -> dict[str, float]:
    """Recalls of the second stage from scores that are valid at the candidates of each direction."""
    own_IT = owner[None, :] == np.arange(score_IT.shape[0])[:, None]
    found_I = np.any(own_IT & top_texts_IT, axis=1)
    found_T = np.any(own_IT & top_images_IT, axis=0)
    second_I = ranking.image_to_text_ranks(np.where(top_texts_IT, score_IT, -np.inf), owner)
    second_T = ranking.text_to_image_ranks(np.where(top_images_IT, score_IT, -np.inf), owner)
    return ranking.recalls(
        ranking.reranked(image_ranks, second_I, found_I),
        ranking.reranked(text_ranks, second_T, found_T),
        prefix="rerank_",
    )
