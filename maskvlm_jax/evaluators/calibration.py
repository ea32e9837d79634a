"""Whether matching's probabilities are what they say: of pairs that are given p, a share of p belongs together.

Probabilities are those of `serving.Model.match`: the matching head's log-odds, for matched and unmatched pairs that are
as likely before. They are compared with what there is, for two kinds of unmatched pairs beside as many matched ones:

    random  a picture with the caption of another one, whatever that is
    hard    a picture with a caption that the contrastive space takes for its own, drawn from softmax(s / τ) among as
            many pictures as a batch of the training has: what the head is trained on (`objectives.matching`)

The error is the expected calibration error (Naeini et al. 2015; Guo et al. 2017, arXiv 1706.04599) over equal bins:

    Σ_b n_b / n · | share of matched pairs in b − mean probability in b |
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from maskvlm_jax.data.evaluation_set import EvaluationSet
from maskvlm_jax.evaluators import base, encoding
from maskvlm_jax.evaluators.predictor import Predictor
from maskvlm_jax.objectives.base import ScoresPairs, TrainsEmbeddings, objective_of
from maskvlm_jax.objectives.matching import PRIOR_LOG_ODDS, probability

BINS = 10
_KINDS = {"random": "", "hard": "_hard"}  # of unmatched pairs, and how their metrics' names end
_SHOWN = {"random": "a caption drawn at random", "hard": "a caption drawn by similarity"}


class Pairs(NamedTuple):
    """Log-odds of as many matched as unmatched pairs, (n,) each."""

    matched: np.ndarray
    unmatched: np.ndarray


class Reliability(NamedTuple):
    """Pairs by their probability, in `BINS` equal bins: (b,) mean probability, share that is matched, count."""

    predicted: np.ndarray
    observed: np.ndarray
    count: np.ndarray


class Evaluator(base.Evaluator):
    """Calibration error and log loss of matching's probabilities, and a diagram; reads `probe_limit` pictures."""

    place = 10

    def __init__(self, run: Any, options: Mapping[str, Any]):
        super().__init__(run, options)
        self._last: dict[str, dict[str, Pairs]] = {}

    @classmethod
    def metrics(cls, objectives: Mapping[str, type]) -> tuple[str, ...]:
        if not objective_of(objectives, ScoresPairs):
            return ()
        kinds = _KINDS if objective_of(objectives, TrainsEmbeddings) else ("random",)
        names = ("matching_calibration_error", "matching_log_loss")
        return tuple(f"{name}{_KINDS[kind]}" for kind in kinds for name in names)

    def evaluate(self, predictor: Predictor, split: str, *, final: bool) -> Iterator[tuple[str, float]]:
        if not predictor.offers(ScoresPairs):
            return
        options, config = self.options, self.run.config
        sizes = {"batch_size": options["batch_size"], "limit": options["probe_limit"], "pool": config.batch_size}
        self._last[split] = score_pairs(predictor, self.run.data(split), seed=options["seed"], **sizes)
        for kind, pairs in self._last[split].items():
            yield f"matching_calibration_error{_KINDS[kind]}", calibration_error(reliability(pairs))
            yield f"matching_log_loss{_KINDS[kind]}", log_loss(pairs)

    def figures(self, predictor: Predictor, split: str) -> base.Figures:
        if not self.options["figures"] or split not in self._last:
            return base.Figures({}, {})
        return base.Figures({"calibration": diagram(self._last[split])}, {})

    def protocol(self, split: str) -> dict[str, Any]:
        if split not in self._last:
            return {}
        pairs = {kind: 2 * len(found.matched) for kind, found in self._last[split].items()}
        return {"calibration": {"pairs": pairs, "bins": BINS, "hard_among": self.run.config.batch_size}}


def score_pairs(
    predictor: Predictor, data: EvaluationSet, *, batch_size: int, limit: int, pool: int, seed: int
) -> dict[str, Pairs]:
    """Pictures with their first caption, beside random and, where there is a contrastive space, hard pairs.

    Args:
        limit: pictures that are read; 0 = all.
        pool: pictures among whose captions a hard one is drawn.
        seed: of the draws.
    """
    others, rng = data.other_pictures()[: limit or None], np.random.default_rng(seed)
    pool = min(pool, len(others))
    block = max(encoding.IMAGE_BLOCK // pool, 1) * pool  # whose sequences are held at a time
    parts = []
    for start in range(0, len(others), block):
        chosen = np.arange(start, min(start + block, len(others)))
        parts.append(_score_block(predictor, data, chosen, others[chosen], pool, rng, batch_size))
    matched, random, hard = (np.concatenate(part) for part in zip(*parts, strict=True))
    found = {"random": Pairs(matched, random)}
    drawn = np.isfinite(hard)  # not so where all pictures of a pool are the same
    return {**found, "hard": Pairs(matched[drawn], hard[drawn])} if drawn.any() else found


def _score_block(
    predictor: Predictor,
    data: EvaluationSet,
    chosen: np.ndarray,
    others: np.ndarray,
    pool: int,
    rng: np.random.Generator,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(matched, random, hard) log-odds of the pictures `chosen`; -inf where there is no hard pair."""
    own, count = data.first_captions[chosen], len(chosen)
    texts = np.concatenate([own, data.first_captions[others]])
    image_ISD, image_IE = encoding.encode_images(predictor, data, batch_size, chosen)
    text_TLD, text_TE = encoding.encode_texts(predictor, data, batch_size, texts)
    rows = np.arange(count)
    wanted_IT = np.tile(np.eye(count, dtype=bool), (1, 2))
    hard = np.full(count, -1)
    if predictor.offers(TrainsEmbeddings):
        ids = data.batch(chosen, own, np.ones(count, bool))["pair_id"]
        allowed_II = ~np.any(ids[:, None] == ids[None], axis=-1) & (rows[:, None] // pool == rows // pool)
        hard = draw_hard(image_IE @ text_TE[:count].T / predictor.temperature(), allowed_II, rng)
        wanted_IT[rows[hard >= 0], hard[hard >= 0]] = True
    score_IT = encoding.match_scores(predictor, image_ISD, text_TLD, data.text["token_valid"][texts], wanted_IT)
    return score_IT[rows, rows], score_IT[rows, count + rows], np.where(hard < 0, -np.inf, score_IT[rows, hard])


def draw_hard(similarity_IT: np.ndarray, allowed_IT: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(I,) one column a row, drawn from softmax(similarity) over those that are allowed; -1 where none is."""
    noisy_IT = np.where(allowed_IT, similarity_IT + rng.gumbel(size=similarity_IT.shape), -np.inf)
    return np.where(allowed_IT.any(axis=1), noisy_IT.argmax(axis=1), -1)


def reliability(pairs: Pairs) -> Reliability:
    """Pairs in bins; of an empty bin the mean and the share are NaN."""
    probabilities = probability(np.concatenate(pairs))
    belongs = np.repeat([1.0, 0.0], [len(pairs.matched), len(pairs.unmatched)])
    place = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    sums = (np.bincount(place, weights=values, minlength=BINS) for values in (probabilities, belongs))
    predicted, observed = (np.divide(total, count, out=np.full(BINS, np.nan), where=count > 0) for total in sums)
    return Reliability(predicted, observed, count)


def calibration_error(found: Reliability) -> float:
    """The expected calibration error, percent."""
    return 100.0 * float(np.nansum(found.count * np.abs(found.observed - found.predicted)) / found.count.sum())


def log_loss(pairs: Pairs) -> float:
    """Mean negative log probability of what is so, in nats; log 2 = 0.693 of one who always says one half."""
    matched, unmatched = (odds.astype(np.float64) - PRIOR_LOG_ODDS for odds in pairs)
    return float(np.mean(np.concatenate([np.logaddexp(0, -matched), np.logaddexp(0, unmatched)])))


def wilson(share: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a share of `count` independent pairs (Wilson 1927)."""
    z = 1.96
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return centre - half, centre + half


def diagram(pairs_of: Mapping[str, Pairs]) -> np.ndarray:
    """(Y, X, 3) uint8: the share of matched pairs by probability, with its interval, over how many pairs there are."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(pairs_of), 5), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    shared = {"sharex": "col", "sharey": "row", "squeeze": False, "height_ratios": (3, 1)}
    axes = figure.subplots(2, len(pairs_of), **shared)
    for (share, counts), (kind, pairs) in zip(axes.T, pairs_of.items(), strict=True):
        _draw(share, counts, reliability(pairs))
        share.set_title(f"unmatched pairs: {_SHOWN[kind]}\n", fontsize=10)
        share.text(
            0.5,
            1.03,
            f"calibration error {calibration_error(reliability(pairs)):.1f} %",
            ha="center",
            transform=share.transAxes,
            fontsize=9,
            color="0.4",
        )
        counts.set_xlabel("probability that they belong together")
    axes[0, 0].set_ylabel("share that does")
    axes[1, 0].set_ylabel("pairs")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw(share: Any, counts: Any, found: Reliability) -> None:
    """One kind's pairs on two axes of matplotlib."""
    edges, there = np.linspace(0, 1, BINS + 1), found.count > 0
    predicted, observed, count = (values[there] for values in found)
    low, high = wilson(observed, count)
    share.plot([0, 1], [0, 1], "--", color="0.6", linewidth=1)
    share.errorbar(
        predicted, observed, (observed - low, high - observed), fmt="o", color="C0", capsize=3, clip_on=False
    )
    share.set(xlim=(0, 1), ylim=(-0.03, 1.03))
    counts.stairs(found.count, edges, fill=True, color="0.75")
    counts.set_yscale("log")
    counts.set_ylim(0.7, 4 * count.max())
    for edge, number in zip(edges, found.count, strict=False):
        counts.text(
            edge + 0.5 / BINS, max(number, 0.7) * 1.15, number, ha="center", va="bottom", fontsize=7, color="0.3"
        )
    for axis in (share, counts):
        axis.grid(color="0.9")
        axis.set_axisbelow(True)
