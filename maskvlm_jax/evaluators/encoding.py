"""Features of a set, and matching scores of its pairs."""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from maskvlm_jax.data.evaluation_set import EvaluationSet, padded
from maskvlm_jax.evaluators.predictor import Predictor
from maskvlm_jax.objectives.base import ScoresPairs, TrainsEmbeddings
from maskvlm_jax.runtime import processes

# Pictures and captions whose projected keys and values are held at a time, pairs of them that are matched at once, and
# batches of pairs that wait to be read.
IMAGE_BLOCK, TEXT_BLOCK, PAIR_BATCH, MOST_UNDER_WAY = 256, 512, 256, 4


def encode_images(
    predictor: Predictor, data: EvaluationSet, batch_size: int, pictures: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """image_ISD and image_IE of some pictures, all if None."""
    pictures = np.arange(len(data.images)) if pictures is None else pictures
    return in_batches(lambda ids: predictor.encode_image(data.images[ids]), pictures, batch_size)


def encode_texts(
    predictor: Predictor, data: EvaluationSet, batch_size: int, texts: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """text_TLD and text_TE of some captions, all if None."""
    texts = np.arange(len(data.captions)) if texts is None else texts
    return encode_tokens(predictor, data.text["tokens"], data.text["token_valid"], batch_size, texts)


def encode_tokens(
    predictor: Predictor,
    tokens_TL: np.ndarray,
    valid_TL: np.ndarray,
    batch_size: int,
    texts: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """text_TLD and text_TE of some texts of a table of tokens, all if None."""
    texts = np.arange(len(tokens_TL)) if texts is None else texts
    return in_batches(lambda ids: predictor.encode_text(tokens_TL[ids], valid_TL[ids]), texts, batch_size)


def embed_images(predictor: Predictor, data: EvaluationSet, batch_size: int) -> np.ndarray:
    """image_IE of all pictures."""
    ids = np.arange(len(data.images))
    return in_batches(lambda ids: (predictor.embed_image(data.images[ids]),), ids, batch_size)[0]


def embed_texts(predictor: Predictor, data: EvaluationSet, batch_size: int) -> np.ndarray:
    """text_TE of all captions."""
    ids, arrays = np.arange(len(data.captions)), (data.text["tokens"], data.text["token_valid"])
    return in_batches(lambda ids: (predictor.embed_text(*(x[ids] for x in arrays)),), ids, batch_size)[0]


def in_batches(
    encode: Callable[[np.ndarray], tuple[np.ndarray, ...]], ids: np.ndarray, batch_size: int
) -> tuple[np.ndarray, ...]:
    """What `encode` gives of the examples `ids`, in batches of one size."""
    results = []
    for start in range(0, len(ids), batch_size):
        chosen, valid = padded(ids[start : start + batch_size], batch_size)
        results.append([x[valid] for x in encode(chosen)])
    return tuple(np.concatenate(parts) for parts in zip(*results, strict=True))


def of_examples(
    predictor: Predictor, data: EvaluationSet, batch_size: int, function: Callable[..., Any], *more: Any
) -> tuple[np.ndarray, ...]:
    """Each of the arrays that function(learner, batch, *more) gives, of all pictures with their first captions."""
    first = data.first_captions

    def fetch(ids: np.ndarray) -> tuple[np.ndarray, ...]:
        # Examples that fill the last batch up are real ones, and are dropped afterwards.
        return predictor.fetch(function, data.batch(ids, first[ids], np.ones(len(ids), bool)), *more)

    return in_batches(fetch, np.arange(len(data.images)), batch_size)


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


def own_scores(predictor: Predictor, data: EvaluationSet, batch_size: int) -> dict[str, np.ndarray]:
    """Scores of every caption with its own picture, (T,) each, of what the model has: "itc", cosines in the contrastive
    space; "itm", log-odds of matching.

    A block of pictures at a time: sequences of one block are held.
    """
    parts: dict[str, list[np.ndarray]] = {"itc": [], "itm": []}
    for start in range(0, len(data.images), IMAGE_BLOCK):
        pictures = np.arange(start, min(start + IMAGE_BLOCK, len(data.images)))
        texts = np.flatnonzero(np.isin(data.image_of_caption, pictures))
        row_T, columns = data.image_of_caption[texts] - start, np.arange(len(texts))
        image_ISD, image_IE = encode_images(predictor, data, batch_size, pictures)
        text_TLD, text_TE = encode_texts(predictor, data, batch_size, texts)
        if predictor.offers(TrainsEmbeddings):
            parts["itc"].append(np.sum(image_IE[row_T] * text_TE, axis=1))
        if predictor.offers(ScoresPairs):
            wanted_IT = np.zeros((len(pictures), len(texts)), bool)
            wanted_IT[row_T, columns] = True
            valid_TL = data.text["token_valid"][texts]
            parts["itm"].append(match_scores(predictor, image_ISD, text_TLD, valid_TL, wanted_IT)[row_T, columns])
    return {way: np.concatenate(scores) for way, scores in parts.items() if scores}


def all_scores(
    predictor: Predictor, data: EvaluationSet, text_TLD: np.ndarray, valid_TL: np.ndarray, batch_size: int
) -> np.ndarray:
    """(I, T) matching log-odds of all pictures with all of some texts; sequences of one block of pictures are held."""
    parts = []
    for start in range(0, len(data.images), IMAGE_BLOCK):
        pictures = np.arange(start, min(start + IMAGE_BLOCK, len(data.images)))
        image_ISD, _ = encode_images(predictor, data, batch_size, pictures)
        wanted_IT = np.ones((len(pictures), len(text_TLD)), bool)
        parts.append(match_scores(predictor, image_ISD, text_TLD, valid_TL, wanted_IT))
    return np.concatenate(parts)
