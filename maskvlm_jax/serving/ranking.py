"""Candidates ranked by both stages: the cosines of all, then the matching of the nearest."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from maskvlm_jax.serving import pictures
from maskvlm_jax.serving.pictures import Picture
from maskvlm_jax.serving.runner import many_texts


class Ranks(Protocol):
    """What is read of a `Model`."""

    matches: bool

    def encode_images(self, images: Any) -> np.ndarray: ...
    def encode_texts(self, texts: Any) -> np.ndarray: ...
    def rerank(
        self, query: Picture | str, candidates: Sequence[Any], cosines: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]: ...


def rank(model: Ranks, query: Picture | str, candidates: Sequence[Any], *, k: int, rerank: int) -> list[dict[str, Any]]:
    """See `Model.rank`."""
    if k < 1 or rerank < 0:
        raise ValueError(f"k is {k} and rerank {rerank}; give at least 1 and 0")
    of_texts = not isinstance(query, str)
    candidates, single = many_texts(candidates) if of_texts else pictures.many(candidates)
    if single:
        raise ValueError("candidates are one text or picture; give a list of them")
    own = model.encode_images(query) if of_texts else model.encode_texts(query)
    others = model.encode_texts(candidates) if of_texts else model.encode_images(candidates)
    cosine = others @ own
    order = np.argsort(-cosine, kind="stable")
    match = dict.fromkeys(order.tolist())
    if rerank and len(order) and model.matches:
        top = order[: max(rerank, k)]
        score, probability = model.rerank(query, [candidates[i] for i in top], cosine[top])
        order = np.concatenate([top[np.argsort(-score, kind="stable")], order[len(top) :]])
        match |= dict(zip(top.tolist(), probability.tolist(), strict=True))
    return [{"index": int(i), "score": float(cosine[i]), "match": match[int(i)]} for i in order[:k]]
