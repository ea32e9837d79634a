"""Image-text retrieval: contrastive features first, then matching scores re-rank the top k (ALBEF, arXiv 2107.07651).

Score formulas of the second stage, by the names under which numbers are published:
    itm      the matching head's logit of "matched"                              (ALBEF)
    itm+itc  that logit plus the cosine of the contrastive features              (BLIP)
Each direction has its own candidates: every picture's top k captions, every caption's top k pictures.
"""

from collections import deque
from collections.abc import Iterator

import numpy as np

from maskvlm_jax import processes
from maskvlm_jax.data.evaluation import EvaluationSet, padded
from maskvlm_jax.evaluators import ranking
from maskvlm_jax.evaluators.predictor import Predictor

# Pictures and captions whose projected keys and values are held at a time, pairs of them that are matched at once, and
# batches of pairs that wait to be read.
IMAGE_BLOCK, TEXT_BLOCK, PAIR_BATCH, MOST_UNDER_WAY = 256, 512, 256, 4


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
    """
    contrastive, matching = "contrastive" in predictor.objectives, "matching" in predictor.objectives
    if not contrastive and not matching:
        return
    if not contrastive:
        yield from match_recalls(predictor, data.first(match_images or len(data.images)), batch_size).items()
        return
    image_ISD, image_IE = encode_images(predictor, data, batch_size)
    text_TLD, text_TE = encode_texts(predictor, data, batch_size)
    cosine_IT = image_IE @ text_TE.T
    owner = data.image_of_caption
    image_ranks = ranking.image_to_text_ranks(cosine_IT, owner)
    text_ranks = ranking.text_to_image_ranks(cosine_IT, owner)
    yield from ranking.recalls(image_ranks, text_ranks).items()

    if rerank_k and matching:
        top_texts_IT = ranking.top_k(cosine_IT, rerank_k)
        top_images_IT = ranking.top_k(cosine_IT.T, rerank_k).T
        match_IT = match_scores(predictor, image_ISD, text_TLD, data.text["token_valid"], top_texts_IT | top_images_IT)
        score_IT = match_IT + cosine_IT if rerank_score == "itm+itc" else match_IT
        yield from rerank_recalls(score_IT, top_texts_IT, top_images_IT, owner, image_ranks, text_ranks).items()


def match_recalls(predictor: Predictor, data: EvaluationSet, batch_size: int) -> dict[str, float]:
    """Recalls of matching every picture with every caption."""
    image_ISD, _ = encode_images(predictor, data, batch_size)
    text_TLD, _ = encode_texts(predictor, data, batch_size)
    wanted_IT = np.ones((len(image_ISD), len(text_TLD)), bool)
    score_IT = match_scores(predictor, image_ISD, text_TLD, data.text["token_valid"], wanted_IT)
    owner = data.image_of_caption
    return ranking.recalls(
        ranking.image_to_text_ranks(score_IT, owner), ranking.text_to_image_ranks(score_IT, owner), prefix="match_"
    )


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


def encode_images(predictor: Predictor, data: EvaluationSet, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """image_ISD and image_IE of all pictures."""
    results = []
    for start in range(0, len(data.images), batch_size):
        ids, valid = padded(np.arange(start, min(start + batch_size, len(data.images))), batch_size)
        out = predictor.encode_image(data.images[ids])
        results.append([x[valid] for x in out])
    return tuple(np.concatenate(parts) for parts in zip(*results, strict=True))


def encode_texts(predictor: Predictor, data: EvaluationSet, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """text_TLD and text_TE of all captions."""
    results = []
    for start in range(0, len(data.captions), batch_size):
        ids, valid = padded(np.arange(start, min(start + batch_size, len(data.captions))), batch_size)
        out = predictor.encode_text(data.text["tokens"][ids], data.text["token_valid"][ids])
        results.append([x[valid] for x in out])
    return tuple(np.concatenate(parts) for parts in zip(*results, strict=True))


def match_scores(
    predictor: Predictor,
    image_ISD: np.ndarray,
    text_TLD: np.ndarray,
    valid_TL: np.ndarray,
    wanted_IT: np.ndarray,
) -> np.ndarray:
    """(I, T) matching logits where `wanted_IT`, -inf elsewhere; each pair is computed once.

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
