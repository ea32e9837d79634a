"""Searches an index: the nearest by cosine, then, for a text, those that match it best.

searcher = Searcher.open(Path("pictures.index"))
searcher.search([Part(text="a dog on the beach")], k=10).hits
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskvlm_jax.runtime import host
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.search import facts as facts_of
from maskvlm_jax.search import stores
from maskvlm_jax.search.catalogue import Catalogue
from maskvlm_jax.search.facts import Facts
from maskvlm_jax.search.scanning import printable
from maskvlm_jax.search.stores import Store
from maskvlm_jax.serving import model as serving
from maskvlm_jax.serving import pictures
from maskvlm_jax.serving.model import Model
from maskvlm_jax.serving.pictures import Picture


@dataclass(frozen=True)
class Part:
    """A part of a query: a text, a picture, or a row of the index, exactly one of them.

    Attributes:
        weight: of its vector in the sum of all parts; a negative one subtracts.
    """

    text: str = ""
    image: Picture | None = None
    like: int | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Hit:
    """A picture that was found.

    Attributes:
        row: of the index, the same for the same bytes for ever.
        name: below the folder, bytes that are no UTF-8 as \\xNN; copies: other names of the same bytes.
        cosine: with the query.
        probability: of matching; None where the query is not one text, or the model has no matching head.
    """

    row: int
    name: str
    cosine: float
    probability: float | None
    copies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """The answer to a query.

    Attributes:
        hits: the best first.
        above: how many of them match with a probability of at least `cutoff`.
        pictures: how many contents were searched.
    """

    hits: list[Hit]
    above: int
    cutoff: float
    pictures: int


class Searcher:
    """An index and its model; made by `open`. Threads may search at once.

    Attributes:
        facts: of the index; model: of it.
    """

    def __init__(self, index: Path, facts: Facts, store: Store, model: Model):
        self.facts, self.model, self._store = facts, model, store
        self._folder = os.fsencode(facts.folder)
        self._catalogue, self._computing, self._looking = Catalogue(index), threading.Lock(), threading.Lock()
        self._live, self._changes = np.zeros(0, bool), -1

    @classmethod
    def open(cls, index: str | os.PathLike, *, model: str = "", load: Callable[..., Model] | None = None) -> "Searcher":
        """The searcher of an index.

        Args:
            model: where its model is by now, "" = where it was.
            load: reads a model, as `maskvlm_jax.load`.

        Raises:
            UserError: there is no index, or no model, or it is another one than the index was made with.
        """
        index = Path(index)
        facts = facts_of.read(index)
        loaded = load_model(facts, model, load or serving.load)
        facts_of.check_model(index, facts, loaded)
        return cls(index, facts, stores.open_store(index, facts), loaded)

    @property
    def folder(self) -> Path:
        """Of the pictures."""
        return Path(self.facts.folder)

    @property
    def model_name(self) -> str:
        """The name of the model's run."""
        return self.facts.run

    @property
    def embed_dim(self) -> int:
        """Numbers of a vector."""
        return self.facts.embed_dim

    @property
    def pictures(self) -> int:
        """How many contents are searched."""
        return int(self._living().sum())

    def search(self, parts: Sequence[Part], *, k: int = 20, rerank: int = 64, cutoff: float = 0.5) -> Found:
        """The pictures that are nearest to the weighted sum of the parts' unit vectors.

        Args:
            k: how many are wanted.
            rerank: how many of the nearest are matched with the text, at least k, where the query is one text alone;
                0 = none.
            cutoff: the probability that counts as a match.

        Raises:
            ValueError: what is asked makes no sense, or a picture of the query cannot be read.
        """
        if k < 1 or rerank < 0 or not 0 <= cutoff <= 1:
            raise ValueError(
                f"k is {k}, rerank {rerank}, cutoff {cutoff}; give k from 1, rerank from 0, cutoff in [0, 1]"
            )
        live, query = self._living(), self._vector(parts)
        matches = (
            bool(rerank) and len(parts) == 1 and bool(parts[0].text) and parts[0].weight > 0 and self.model.matches
        )
        rows, cosines = self._store.top(query, max(rerank, k) if matches else k, live)
        probabilities = [None] * len(rows)
        if matches and len(rows):
            rows, cosines, probabilities = self._matched(parts[0].text, rows, cosines)
        hits = [self._hit(*hit) for hit in zip(rows.tolist(), cosines.tolist(), probabilities, strict=True)]
        hits = [hit for hit in hits if hit is not None][:k]
        above = sum(hit.probability is not None and hit.probability >= cutoff for hit in hits)
        return Found(hits, above, cutoff, int(live.sum()))

    def word_weights(self, text: str, row: int) -> list[tuple[str, float]]:
        """Each word of a text, and how much the probability of a picture falls without it; see `Model.word_weights`.

        Raises:
            ValueError: the text is empty or too long; LookupError: there is no such picture any more.
        """
        pixels = pictures.read(self.picture(row), self.model.image_size)
        with self._computing:
            return self.model.word_weights(pixels, text)

    def names(self, row: int) -> list[str]:
        """All names of a picture, below the folder; none if it was deleted."""
        return [printable(name) for name in self._catalogue.names_of(row)]

    def picture(self, row: int) -> Path:
        """The file of a picture.

        Raises:
            LookupError: there is no such row, or its file is gone, or a link by now.
        """
        folder = os.path.realpath(self._folder)
        for name in self._catalogue.names_of(row):
            path = os.path.join(folder, name)
            if os.path.realpath(path) == path and os.path.isfile(path):
                return Path(os.fsdecode(path))
        raise LookupError(f"the index has no picture {row}, or its file is not there any more")

    def _living(self) -> np.ndarray:
        """(rows,) bool: which rows have a file; read anew where the catalogue has changed."""
        changes = self._catalogue.changes()
        with self._looking:
            if changes != self._changes:
                self._live, self._changes = self._catalogue.live(), changes
            return self._live

    def _vector(self, parts: Sequence[Part]) -> np.ndarray:
        """The unit vector of a query."""
        if not parts:
            raise ValueError("the query is empty; give a text, a picture or a row")
        if not all(np.isfinite(part.weight) for part in parts):
            raise ValueError("a weight is no number")
        total = sum(part.weight * self._part(part) for part in parts)
        length = np.linalg.norm(total)
        if length < 1e-6:
            raise ValueError("the parts of the query cancel each other out; change a weight")
        return total / length

    def _part(self, part: Part) -> np.ndarray:
        """The unit vector of a part."""
        if bool(part.text) + (part.image is not None) + (part.like is not None) != 1:
            raise ValueError("a part of a query is one of a text, a picture and a row")
        if part.like is not None:
            live = self._living()
            if not 0 <= part.like < len(live) or not live[part.like]:
                raise ValueError(f"the index has no picture {part.like}")
            return self._store.read(np.array([part.like]))[0]
        with self._computing:
            return self.model.encode_texts(part.text) if part.text else self.model.encode_images(part.image)

    def _matched(self, text: str, rows: np.ndarray, cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[float]]:
        """The candidates in the order of the second stage, without those whose file cannot be read any more."""
        with ThreadPoolExecutor(host.cores()) as pool:
            pixels = list(pool.map(self._pixels, rows.tolist()))
        there = [place for place, value in enumerate(pixels) if value is not None]
        if not there:
            return rows[:0], cosines[:0], []
        with self._computing:
            scores, probabilities = self.model.rerank(text, [pixels[place] for place in there], cosines[there])
        order = np.argsort(-scores, kind="stable")
        chosen = np.array(there)[order]
        return rows[chosen], cosines[chosen], probabilities[order].tolist()

    def _pixels(self, row: int) -> np.ndarray | None:
        try:
            return pictures.read(self.picture(row), self.model.image_size)
        except (LookupError, pictures.PictureError):
            return None

    def _hit(self, row: int, cosine: float, probability: float | None) -> Hit | None:
        names = self.names(row)
        return Hit(row, names[0], cosine, probability, tuple(names[1:])) if names else None


def load_model(facts: Facts, model: str, load: Callable[..., Model]) -> Model:
    """The model of an index.

    Args:
        model: where it is by now, "" = where it was.

    Raises:
        UserError: there is none.
    """
    try:
        return load(model or facts.model, step=facts.checkpoint, weights=facts.weights)
    except UserError as error:
        raise UserError(f"the model of the index cannot be read: {error}; --model=FOLDER says where it is") from error
