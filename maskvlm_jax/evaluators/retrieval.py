"""Image-text retrieval: contrastive features first, then matching scores re-rank the top k (ALBEF, arXiv 2107.07651).

Score formulas of the second stage, by name; m: the matching head's log-odds of "matched", s: the cosine of the
contrastive features, τ: their learned temperature:
    itm         m              as ALBEF, whose score is one of the two logits
    itm+itc     m + s / τ      p(T | I) up to a constant where negatives were drawn by s / τ, see `objectives.matching`
    itm+cosine  m + s          as BLIP (Li et al. 2022, arXiv 2201.12086)
Each direction has its own candidates: every picture's top k captions, every caption's top k pictures.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from maskvlm_jax import processes
from maskvlm_jax.data.evaluation import EvaluationSet, padded
from maskvlm_jax.evaluators import ranking
from maskvlm_jax.evaluators.predictor import Predictor

# Pictures and captions whose projected keys and values are held at a time, pairs of them that are matched at once, and
# batches of pairs that wait to be read.
IMAGE_BLOCK, TEXT_BLOCK, PAIR_BATCH, MOST_UNDER_WAY = 256, 512, 256, 4


# (log-odds, cosine, temperature) -> score
SCORES: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "itm": lambda match, cosine, temperature: match,
    "itm+itc": lambda match, cosine, temperature: match + cosine / temperature,
    "itm+cosine": lambda match, cosine, temperature: match + cosine,
}


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
    contrastive, matching = "contrastive" in predictor.objectives, "matching" in predictor.objectives
    if not contrastive and not matching:
        return
    if not contrastive:
        yield from match_recalls(predictor, data.first(match_images or len(data.images)), batch_size).items()
        return
    if rerank_k and matching:
        stages = two_stages(predictor, data, batch_size=batch_size, k=rerank_k)
        yield from stages.first_recalls().items()
        yield from stages.recalls(rerank_score).items()
        return
    image_IE, text_TE = embed_images(predictor, data, batch_size), embed_texts(predictor, data, batch_size)
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
    image_ISD, image_IE = encode_images(predictor, data, batch_size)
    text_TLD, text_TE = encode_texts(predictor, data, batch_size)
    cosine_IT = image_IE @ text_TE.T
    top_texts_IT, top_images_IT = ranking.top_k(cosine_IT, k), ranking.top_k(cosine_IT.T, k).T
    match_IT = match_scores(predictor, image_ISD, text_TLD, data.text["token_valid"], top_texts_IT | top_images_IT)
    owner = data.image_of_caption
    ranks = ranking.image_to_text_ranks(cosine_IT, owner), ranking.text_to_image_ranks(cosine_IT, owner)
    return TwoStages(cosine_IT, match_IT, top_texts_IT, top_images_IT, owner, predictor.temperature(), *ranks)


def compare_scores(predictor: Predictor, data: EvaluationSet, *, batch_size: int, k: int) -> dict[str, float]:
    """Re-ranked mean recall by every formula, in the order of `SCORES`, so that the simplest wins a tie."""
    stages = two_stages(predictor, data, batch_size=batch_size, k=k)
    return {score: stages.recalls(score)["rerank_mean_recall"] for score in SCORES}


def match_recalls(predictor: Predictor, data: EvaluationSet, batch_size: int) -> dict[str, float]:
    """Recalls of matching every picture with every caption."""
    image_ISD, _ = encode_images(predictor, data, batch_size)
    text_TLD, _ = encode_texts(predictor, data, batch_size)
    wanted_IT = np.ones((len(image_ISD), len(text_TLD)), bool)
    score_IT = match_scores(predictor, image_ISD, text_TLD, data.text["token_valid"], wanted_IT)
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


def encode_images(
    predictor: Predictor, data: EvaluationSet, batch_size: int, pictures: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """image_ISD and image_IE of some pictures, all where None."""
    pictures = np.arange(len(data.images)) if pictures is None else pictures
    return _in_batches(lambda ids: predictor.encode_image(data.images[ids]), pictures, batch_size)


def encode_texts(
    predictor: Predictor, data: EvaluationSet, batch_size: int, texts: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """text_TLD and text_TE of some captions, all where None."""
    texts = np.arange(len(data.captions)) if texts is None else texts
    arrays = data.text["tokens"], data.text["token_valid"]
    return _in_batches(lambda ids: predictor.encode_text(*(x[ids] for x in arrays)), texts, batch_size)


def embed_images(predictor: Predictor, data: EvaluationSet, batch_size: int) -> np.ndarray:
    """image_IE of all pictures."""
    ids = np.arange(len(data.images))
    return _in_batches(lambda ids: (predictor.embed_image(data.images[ids]),), ids, batch_size)[0]


def embed_texts(predictor: Predictor, data: EvaluationSet, batch_size: int) -> np.ndarray:
    """text_TE of all captions."""
    ids, arrays = np.arange(len(data.captions)), (data.text["tokens"], data.text["token_valid"])
    return _in_batches(lambda ids: (predictor.embed_text(*(x[ids] for x in arrays)),), ids, batch_size)[0]


def _in_batches(
    encode: Callable[[np.ndarray], tuple[np.ndarray, ...]], ids: np.ndarray, batch_size: int
) -> tuple[np.ndarray, ...]:
    """What `encode` gives of the examples `ids`, in batches of one size."""
    results = []
    for start in range(0, len(ids), batch_size):
        chosen, valid = padded(ids[start : start + batch_size], batch_size)
        results.append([x[valid] for x in encode(chosen)])
    return tuple(np.concatenate(parts) for parts in zip(*results, strict=True))


def match_scores(
    predictor: Predictor,
    image_ISD: np.ndarray,
    text_TLD: np.ndarray,
    valid_TL: np.ndarray,
    wanted_IT: np.ndarray,
) -> np.ndarray:
    """(I, T) matching log-odds where `wanted_IT`, -inf elsewhere; each pair is computed once.

    Unimodal features are reused: pictures and captions are prepared a block at a time, and each pair gathers its own.
    All batches have one shape, and the next ones are under way while one is read.
    """
    score_IT = np.full(wanted_IT.shape, -np.inf, np.float32)
    images, texts = (min(block, n) for block, n in zip((IMAGE_BLOCK, TEXT_BLOCK), wanted_IT.shape, strict=True))
    size, under_way = predictor.pair_batch(PAIR_BATCH), deque()

    def read() -> None:
        image_ids, text_ids, logits = under_way.popleft()
        score_IT[image_ids, text_ids] = processes.fetch(logits)[: len(image_ids)]

    for first_image in range(0, len(image_ISD), images):
        wanted = wanted_IT[first_image : first_image + images]
        block, _ = padded(np.arange(first_image, first_image + len(wanted)), images)
        prepared_images = predictor.prepare_images(image_ISD[block])
        for first_text in range(0, len(text_TLD), texts):
            block, _ = padded(np.arange(first_text, min(first_text + texts, len(text_TLD))), texts)
            image_ids, text_ids = np.nonzero(wanted[:, first_text : first_text + texts])
            if not len(image_ids):
                continue
            prepared_texts = predictor.prepare_texts(text_TLD[block], valid_TL[block])
            for first in range(0, len(image_ids), size):
                pairs = image_ids[first : first + size], text_ids[first : first + size]
                logits = predictor.match(prepared_images, prepared_texts, *(padded(ids, size)[0] for ids in pairs))
                under_way.append((first_image + pairs[0], first_text + pairs[1], logits))
                if len(under_way) > MOST_UNDER_WAY:
                    read()
    while under_way:
        read()
    return score_IT
